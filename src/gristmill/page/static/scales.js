// Scales and the round numbers along them.

export function extent(values) {
  return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
}

export function scale([low, high], [from, to]) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

export function logScale([low, high], to) {
  const linear = scale([Math.log10(low), Math.log10(high)], to);
  return (value) => linear(Math.log10(value));
}

/** Round numbers (1, 2 or 5 times a power of ten) that enclose low and high, both above 0; powers alone where those
 * would be many. */
export function logTicks(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.floor(Math.log10(high)) + 1];
  const round = (value) => Number(value.toPrecision(3));
  const all = [];
  for (let power = first; power <= last; power += 1) all.push(...[1, 2, 5].map((m) => round(m * 10 ** power)));
  const from = all.findLastIndex((tick) => tick <= low);
  const ticks = all.slice(from, all.findIndex((tick, i) => tick >= high && i > from) + 1);
  if (ticks.length <= 6) return ticks;
  const step = Math.ceil((last - first) / 5);
  const powers = [];
  for (let power = first; power < last + step; power += step) powers.push(round(10 ** power));
  return powers;
}

/** About `count` round numbers that enclose low and high: steps of 1, 2 or 5 times a power of ten. */
export function niceTicks(low, high, count) {
  if (low === high) {
    const half = Math.abs(low) / 2 || 0.5;
    [low, high] = [low - half, high + half];
  }
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const ticks = [];
  for (let i = Math.floor(low / step); i <= Math.ceil(high / step); i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}
