// Numbers and times as people read them. A value of a kind it does not know is shown as it is.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export function format(value, unit) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  switch (unit) {
    case "count": return whole.format(value);
    case "short": return short.format(value);
    case "bytes": return bytes(value);
    case "seconds": return duration(value);
    case "percent": return `${(100 * value).toFixed(1)} %`;
    case "percent-change": return `${value < 0 ? "−" : "+"}${(100 * Math.abs(value)).toFixed(1)} points`;
    default: return number(value);
  }
}

/** Both ends of an interval; the unit is said once. */
export function formatRange(low, high, unit) {
  if (unit === "percent") return `${(100 * low).toFixed(1)} to ${format(high, unit)}`;
  if (unit === "percent-change") return `${format(low, unit).replace(" points", "")} to ${format(high, unit).replace(" points", "")}`;
  return `${format(low, unit)} to ${format(high, unit)}`;
}

/** About four significant digits, and exponents only where zeros would hide the number. */
export function number(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return whole.format(value);
  if (size >= 1000) return whole.format(value);
  if (size !== 0 && size < 0.001) return value.toExponential(2).replace(/\.?0+e/, "e").replace(/-/g, "−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

/** For the axes of a chart, where room is short. */
export function compact(value) {
  return Math.abs(value) >= 10_000 ? short.format(value).replace("-", "−") : number(value);
}

/** Decimal units: 1 MB is a million bytes. */
export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let step = 0;
  while (value >= 1000 && step < units.length - 1) {
    value /= 1000;
    step += 1;
  }
  return `${step === 0 ? whole.format(value) : value.toPrecision(3)} ${units[step]}`;
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const total = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

const PREFIXES = [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const BINARY = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];
const TIMES = [[86_400, "days"], [3600, "hours"], [60, "minutes"], [1, "s"]];

/** A number with a prefix in place of its zeros: for the axes of the planner's plots, whose captions say the unit. */
export function prefixed(value) {
  const found = PREFIXES.find(([size]) => Math.abs(value) >= size);
  return found ? `${number(value / found[0])} ${found[1]}` : number(value);
}

/** A value in one of the planner's SI units; bytes in powers of ten and of two, as plan/quantity.py writes them. */
export function quantity(value, unit) {
  if (unit === "1") return `${number(100 * value)} %`;
  if (unit === "s") {
    const [size, word] = TIMES.find(([seconds]) => value >= seconds) ?? [0.001, "ms"];
    return `${number(value / size)} ${word}`;
  }
  if (unit.startsWith("byte")) {
    const per = unit.slice(4);
    const [size, word] = BINARY.find(([bytes]) => value >= bytes) ?? [1, "B"];
    return `${prefixed(value)}${value < 1000 ? " " : ""}B${per} = ${number(value / size)} ${word}${per}`;
  }
  if (unit.startsWith("FLOP")) return `${prefixed(value)}${value < 1000 ? " " : ""}${unit}`;
  return unit ? `${number(value)} ${unit}` : number(value);
}
