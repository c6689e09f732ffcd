# SPDX-License-Identifier: Apache-2.0
"""How the page looks: one style sheet, for light and for dark."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --card: #ffffff; --ink: #1c2321; --soft: #66706d;
  --rule: #e2e5e1; --bar: #8fb8b3; --accent: #0b7a70; --mark: #c2570c;
  --mark-soft: #fdebd9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121615; --card: #1a201e; --ink: #e6ebe8; --soft: #95a19d;
    --rule: #2c3532; --bar: #47756f; --accent: #4cc5b6; --mark: #ff9d5c;
    --mark-soft: #46280f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 62rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans",
    sans-serif;
}
h1 { font-size: 1.9rem; font-weight: 650; letter-spacing: -0.02em; margin: 0; }
h2 {
  font-size: 1.35rem; font-weight: 650; letter-spacing: -0.01em;
  margin: 4rem 0 0.2rem; padding-top: 1.2rem;
  border-top: 2px solid var(--ink); overflow-wrap: anywhere;
}
h3 { font-size: 1rem; font-weight: 650; margin: 2.2rem 0 0.2rem; }
p { margin: 0.2rem 0 0.8rem; max-width: 44rem; }
.soft, figcaption { color: var(--soft); font-size: 0.87rem; }
a { color: var(--accent); }
.tiles {
  display: grid; gap: 0.7rem; margin: 1.2rem 0;
  grid-template-columns: repeat(auto-fit, minmax(8.4rem, 1fr));
}
.tile {
  background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: 0.8rem 1rem;
}
.tile b {
  display: block; font-size: 1.55rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; letter-spacing: -0.02em;
}
.tile span { color: var(--soft); font-size: 0.82rem; }
.words { line-height: 2.15; max-width: none; }
.piece {
  display: inline-block; padding: 0 0.42em; margin: 0 0.1em;
  border: 1px solid var(--rule); border-radius: 6px; line-height: 1.6;
  background: var(--card); white-space: pre;
}
.piece i { font-style: normal; color: var(--soft); opacity: 0.55; }
.piece small {
  color: var(--soft); margin-left: 0.45em; font-variant-numeric: tabular-nums;
}
.piece.label {
  border-color: var(--mark); background: var(--mark-soft); font-weight: 600;
}
figure { margin: 1rem 0 1.4rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.bar { fill: var(--bar); }
.bar.marked { fill: var(--mark); }
.bar:hover { fill: var(--accent); }
.reference { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 5 4; }
.line { fill: none; stroke: var(--accent); stroke-width: 2; }
.dot { fill: var(--accent); }
.frame { fill: none; stroke: var(--rule); }
.heat { image-rendering: pixelated; }
.square { max-width: 34rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; margin: 0.6rem 0; }
th {
  text-align: left; font-weight: 600; color: var(--soft); font-size: 0.8rem;
}
th, td {
  padding: 0.3rem 0.7rem 0.3rem 0; border-bottom: 1px solid var(--rule);
}
td.number, th.number {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
}
.positions { width: 100%; }
.positions thead th { position: sticky; top: 0; background: var(--paper); }
.positions tr.label td:first-child { box-shadow: inset 3px 0 0 var(--mark); }
.positions td:first-child { padding-left: 0.6rem; color: var(--soft); }
.matrix td { padding: 0.45rem 0.9rem; border: 1px solid var(--rule); }
.matrix th { padding-right: 0.9rem; text-align: right; }
@media print { .positions thead th { position: static; } }
"""
