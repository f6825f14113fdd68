"""The style sheet of the page of a run: system fonts, one colour per series, for light and dark mode and print."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1c1e21; --muted: #676c73; --rule: #d9dce0; --wash: #f6f7f8;
  --series-0: #2867b2; --series-1: #c65d12; --series-2: #23805a;
  --series-3: #7a4fb0; --series-4: #b8324a; --series-5: #7a6a1f;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --ink: #e6e7e9; --muted: #9aa0a8; --rule: #34383e; --wash: #1d2024;
    --series-0: #6ea8ee; --series-1: #f0955a; --series-2: #5fc39a;
    --series-3: #b794e8; --series-4: #ef7d8f; --series-5: #c9b860;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 80px; }
header { margin-bottom: 48px; }
h1 {
  font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em;
  margin: 0; overflow-wrap: anywhere;
}
h2 {
  font-size: 18px; font-weight: 650; letter-spacing: -0.005em;
  margin: 0 0 16px; padding-top: 14px; border-top: 1px solid var(--rule);
}
h3 { font-size: 13px; font-weight: 600; color: var(--muted); margin: 20px 0 6px; }
section { margin-bottom: 48px; }
.kicker { margin: 0 0 4px; color: var(--muted); font-size: 13px; overflow-wrap: anywhere; }
.note, figcaption { color: var(--muted); font-size: 13px; }
.note { margin: 8px 0 0; }
dl { display: flex; flex-wrap: wrap; gap: 14px 36px; margin: 24px 0 0; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 0; font-size: 17px; font-weight: 550; overflow-wrap: anywhere; }
figure { margin: 0; }
.headline { display: grid; gap: 24px; }
.small {
  display: grid; gap: 24px; margin-top: 24px;
  grid-template-columns: repeat(auto-fill, minmax(max(210px, 30%), 1fr));
}
.chart { min-width: 0; overflow-x: auto; display: flex; flex-direction: column; }
.chart figcaption { color: var(--ink); font-size: 14px; font-weight: 600; }
.chart svg { display: block; width: 100%; height: auto; margin-top: auto; }
.headline .chart svg { min-width: 380px; }
.headline .chart.wide svg { min-width: 640px; }
.chart svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 20px;
  list-style: none; margin: 2px 0 4px; padding: 0; font-size: 13px;
}
.legend b { font-weight: 600; }
.swatch { display: inline-block; width: 18px; margin-right: 7px; vertical-align: middle; border-top: 3px solid; }
.swatch.dashed { border-top: 2px dashed; }
.s0 { color: var(--series-0); } .s1 { color: var(--series-1); } .s2 { color: var(--series-2); }
.s3 { color: var(--series-3); } .s4 { color: var(--series-4); } .s5 { color: var(--series-5); }
.st { color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; table-layout: fixed; width: 100%; min-width: 560px; font-size: 14px; }
thead th { width: 14%; }
thead th:first-child { width: auto; color: var(--ink); font-size: 14px; font-weight: 600; }
th, td { text-align: right; padding: 5px 0 5px 24px; white-space: nowrap; font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; }
thead th { font-size: 13px; color: var(--muted); border-bottom: 1px solid var(--rule); }
tbody tr + tr { border-top: 1px solid var(--rule); }
th:first-child { overflow: hidden; text-overflow: ellipsis; }
.scroll + .scroll, .scroll + details, details + .scroll { margin-top: 24px; }
tbody td:nth-child(3) { font-weight: 600; }
.spark { width: 80px; height: 20px; vertical-align: middle; }
.spark polyline { fill: none; stroke: var(--muted); stroke-width: 1.5; stroke-linejoin: round; }
.spark circle { fill: var(--series-0); }
.pictures { display: grid; gap: 32px; }
.picture > figure { overflow-x: auto; }
.picture img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 2px; }
.picture figcaption { margin-top: 6px; overflow-wrap: anywhere; }
.strip {
  display: grid; gap: 16px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
}
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--muted); font-size: 14px; }
pre {
  margin: 8px 0; padding: 12px 14px; background: var(--wash); border-radius: 4px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (min-width: 900px) { .headline.two { grid-template-columns: 3fr 2fr; } }
@media (max-width: 600px) { main { padding: 28px 16px 48px; } h1 { font-size: 24px; } dl { gap: 12px 28px; } }
@media print {
  main { max-width: none; padding: 0; }
  .headline.two { grid-template-columns: 3fr 2fr; }
  .headline .chart svg, .headline .chart.wide svg, table { min-width: 0; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
