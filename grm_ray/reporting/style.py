"""The page's one style sheet: system fonts, light and dark, one column on a narrow screen.

Series colours are those of Okabe and Ito, made for eyes that confuse red and green, with lighter
shades on a dark ground.
"""

import re

CSS = """
:root {
  color-scheme: light dark;
  --ground: #f7f7f4; --card: #ffffff; --ink: #1c2330; --soft: #5b6573; --rule: #e3e5e8;
  --tint: #f1f3f5; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00;
  --c5: #56b4e9; --c6: #a3abb5; --note: #fff6dd; --note-rule: #e6c65c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11151b; --card: #1a2028; --ink: #e6e9ee; --soft: #9ca7b5; --rule: #2d3540;
    --tint: #222a34; --c0: #5ab4ec; --c1: #ff9354; --c2: #37c79b; --c3: #e4a0c6; --c4: #f2bd4b;
    --c5: #9bd6f8; --c6: #6b7684; --note: #2c2716; --note-rule: #7a682c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 56px; }
.eyebrow { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .06em;
  text-transform: uppercase; }
h1 { margin: 2px 0 4px; font-size: 34px; line-height: 1.2; font-weight: 650;
  letter-spacing: -.015em; }
h2 { margin: 48px 0 4px; font-size: 21px; font-weight: 620; letter-spacing: -.005em; }
h3 { margin: 0; font-size: 15px; font-weight: 620; }
p { margin: 0 0 12px; max-width: 78ch; }
.soft, .about { color: var(--soft); }
.about { font-size: 14.5px; margin-bottom: 16px; }
.verdict { margin: 22px 0 24px; font-size: 19px; line-height: 1.5; max-width: 64ch; }
.notes { margin: 0 0 24px; padding: 12px 18px 12px 36px; border: 1px solid var(--note-rule);
  border-radius: 10px; background: var(--note); font-size: 14.5px; }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); }
.card, figure, .talk { background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; }
.card { padding: 16px 18px; }
.card .what { color: var(--soft); font-size: 13.5px; }
.card .value { font-size: 27px; font-weight: 620; letter-spacing: -.015em; line-height: 1.3; }
.card .value .from { color: var(--soft); font-weight: 450; }
.card .more { color: var(--soft); font-size: 13.5px; line-height: 1.45; }
.charts { display: grid; gap: 16px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
figure { margin: 0; padding: 16px 16px 10px; container-type: inline-size; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline;
  justify-content: space-between; min-height: 26px; margin-bottom: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0; padding: 0; list-style: none;
  color: var(--soft); font-size: 13px; }
.legend svg { width: 22px; height: 12px; vertical-align: -1px; margin-right: 5px; }
figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; }
svg .end { text-anchor: end; } svg .mid { text-anchor: middle; }
@container (max-width: 400px) { figure > svg text { font-size: 14px; }
  figure > svg .name { font-size: 12px; } }
@container (min-width: 640px) { figure > svg text { font-size: 9px; } }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); stroke-opacity: .55; fill: none; }
.guide { stroke: var(--soft); stroke-dasharray: 2 4; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.dashed { stroke-width: 1.4; stroke-dasharray: 5 4; }
.whisker { fill: none; stroke-width: 1.4; } .diamond, .dot { stroke-width: 1.6; }
.dot { stroke: none; } .diamond { stroke: var(--card); }
.strip rect { fill: transparent; } .strip path { stroke: var(--soft); stroke-opacity: 0; }
.strip:hover path { stroke-opacity: .7; }
.bar { stroke: var(--card); stroke-width: .6; }
.gain { fill: var(--c0); } .loss { fill: var(--c1); } .marked { fill: var(--ink); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); }
.line, .whisker { stroke: var(--c); } .diamond, .dot, .bar { fill: var(--c); }
table { width: 100%; border-collapse: collapse; font-size: 14.5px; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 7px 8px; white-space: nowrap; border-bottom: 1px solid var(--rule);
  text-align: right; }
th:first-child, td:first-child { text-align: left; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; background: var(--c);
  margin-right: 9px; }
.share { width: 34%; } tbody tr:last-child td { border: 0; }
.share i { display: block; height: 9px; border-radius: 3px;
  background: var(--c); min-width: 1px; }
.talk { margin-top: 16px; padding: 18px 20px 20px; }
.talk h3 span { color: var(--soft); font-weight: 450; }
.prompt { margin: 10px 0 14px; padding: 10px 14px; border-left: 3px solid var(--rule);
  color: var(--soft); }
.sides { display: grid; gap: 16px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.sides.one { grid-template-columns: minmax(0, 1fr); }
.who { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; font-size: 13.5px;
  color: var(--soft); margin-bottom: 6px; }
.who b { color: var(--ink); font-size: 14.5px; }
.said, .prompt { white-space: pre-wrap; max-height: 320px; overflow: auto; font-size: 15px;
  unicode-bidi: isolate; }
.said { background: var(--tint); border-radius: 10px; padding: 12px 14px; }
.said:empty::after { content: "(an empty answer)"; color: var(--soft); font-style: italic; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; }
.figures { border-collapse: separate; border-spacing: 0; }
.figures th { vertical-align: bottom; } .figures .name { text-align: left; }
.figures th[scope="row"] { color: var(--ink); font-size: 14.5px; }
.figures th, .figures td { padding: 7px 14px; }
.figures .stays { position: sticky; left: 0; background: var(--card); }
.figures small { color: var(--soft); font-size: 12.5px; }
.figures .prose { text-align: left; white-space: normal; min-width: 24ch; }
.figures tr:has(+ .foot):not(.foot) > *, .figures tr:has(+ .group) > * {
  border-color: color-mix(in srgb, var(--soft) 55%, transparent); }
.figures .foot > *, .figures .foot > th[scope="row"] { color: var(--soft); }
.figures tbody tr:last-child > * { border: 0; }
.sign { margin-right: 6px; color: var(--c1); font: 12px/1 sans-serif; }
.sign.up { color: var(--c0); }
.scroll + .about { margin: 8px 0 0; } .scroll + h3, .about + h3 { margin: 18px 0 6px; }
.wide { margin-top: 16px; } .wide .scroll { border: 0; border-radius: 0; }
.wide svg { display: block; width: 100%; min-width: 680px; height: auto; }
.wide .strong { fill: var(--ink); font-size: 12.5px; } .band { fill: var(--tint); }
.shade { fill: var(--c); fill-opacity: .13; } .hit { fill: transparent; }
.fitted { fill: none; stroke: var(--c); stroke-width: 1.2; stroke-dasharray: 2 4; }
.stack { display: flex; gap: 1px; height: 14px; margin: 4px 0 14px; }
.stack i { background: var(--c); border-radius: 2px; }
.runs { margin: 20px 0; } .runs > h3:first-child { margin-bottom: 6px; }
.runs .figures > * > tr > * { vertical-align: top; }
.keys { position: sticky; top: 0; z-index: 1; max-height: 124px; overflow: auto; margin: 8px 0;
  padding: 10px 0; background: var(--ground); }
.longer { stroke: var(--ink); stroke-width: 2; fill: none; }
.mark { fill: var(--c); stroke: var(--card); }
.line.thin { stroke-width: 1.3; } details > .legend { margin-bottom: 12px; }
details { margin-top: 16px; }
summary { cursor: pointer; padding: 6px 0; font-weight: 600; font-size: 17px; }
details .charts { margin-top: 10px; }
pre { margin: 8px 0 0; padding: 16px 18px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; overflow-x: auto; font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; overflow-wrap: normal; }
footer { margin-top: 52px; padding-top: 14px; border-top: 1px solid var(--rule);
  color: var(--soft); font-size: 13.5px; }
@media (max-width: 760px) {
  main { padding: 24px 16px 40px; }
  h1 { font-size: 27px; } .verdict { font-size: 17.5px; }
  .charts, .sides { grid-template-columns: minmax(0, 1fr); }
  .cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
  .card { padding: 13px 14px; } .card .value { font-size: 19px; white-space: nowrap; }
  .spare { display: none; } .runs .stays { min-width: 28vw; white-space: normal; }
  .runs .figures th, .runs .figures td { padding: 7px 9px; }
  figure { padding: 14px 10px 8px; } .talk { padding: 14px; }
}
@media print { body { background: #fff; } .keys { position: static; }
  figure, .talk, .card { break-inside: avoid; } }
"""

# Colours on a light ground by name, for a picture that stands without the page.
LIGHT = dict(re.findall(r"--([\w-]+): (#\w+)", CSS.split("@media")[0]))
