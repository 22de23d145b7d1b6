"""The look of `report.html`: one style sheet, light and dark, no font or image from anywhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --sunk: #f1efe9; --ink: #1e2023; --muted: #5b6068; --line: #dcd8ce;
  --kept: #0072b2; --removed: #c65300; --cut: #ad2118;
  --body: system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --sunk: #0f1113; --ink: #e7e5df; --muted: #a3a8b0; --line: #33373d;
    --kept: #56b4e9; --removed: #e69f00; --cut: #ff9087;
  }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); font: 16px/1.5 var(--body); font-variant-numeric: tabular-nums; }
body { margin: 0 auto; max-width: 74rem; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; font-weight: 600; }
h2 { font-size: 1.25rem; margin: 3rem 0 .25rem; font-weight: 600; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; font-weight: 600; }
p { margin: 0 0 .75rem; max-width: 72ch; }
.note { color: var(--muted); font-size: .875rem; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .875rem; }
a { color: inherit; text-underline-offset: 3px; }
dl.figures { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 1.5rem 0 0; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
dl.figures dt { color: var(--muted); font-size: .875rem; }
dl.figures dd { margin: 0; font-size: 1.375rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem 1.25rem .3rem 0; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); vertical-align: bottom; border-bottom-color: var(--muted); }
tbody th { white-space: nowrap; }
tr:last-child > * { border-bottom: 0; }
.num { text-align: right; white-space: nowrap; }
tr.split th { padding-left: 1rem; }
svg { display: block; }
svg.bar { width: 14rem; height: .75rem; margin-top: .3rem; }
.kept { fill: var(--kept); }
.removed { fill: var(--removed); }
.cut { stroke: var(--cut); stroke-width: 1.5; stroke-dasharray: 3 2; }
.axis { stroke: var(--line); }
svg text { fill: var(--muted); font: 11px var(--body); }
.key { display: inline-block; margin-right: 1rem; }
.key::before { content: ""; display: inline-block; width: .75rem; height: .75rem; margin-right: .375rem;
  border-radius: 2px; background: var(--kept); vertical-align: -1px; }
.key.of-removed::before { background: var(--removed); }
.key.of-cut::before { background: none; width: 0; border-left: 2px dashed var(--cut); border-radius: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem 2rem; }
.charts + .note { margin-top: 1rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .875rem; margin-bottom: .25rem; }
figcaption b { font-weight: 600; }
figcaption .note { display: block; font-size: .8125rem; }
svg.histogram { width: 100%; height: auto; }
.pair tbody th { white-space: normal; min-width: 8rem; max-width: 14rem; overflow-wrap: break-word; }
.pair svg.bar { width: 8rem; }
thead th { white-space: nowrap; }
.pair { columns: 2 30rem; column-gap: 3rem; }
.pair > div { break-inside: avoid; padding-top: .25rem; }
.pair h3 { margin-top: 1rem; }
details { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .375rem 0; }
summary .note { margin-left: .5rem; }
details > :not(summary) { margin-left: 1.125rem; }
article { padding: .25rem 0 .75rem; }
article p { margin: 0 0 .25rem; overflow-wrap: anywhere; max-width: none; }
pre { margin: 0; padding: .625rem .875rem; background: var(--sunk); border-radius: 4px; overflow-x: auto;
  font: .8125rem/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; }
code { font: .8125rem var(--mono); }
@media print { details > * { display: block; } nav { display: none; } }
"""
