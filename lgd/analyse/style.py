"""How the page looks: dark on light, at the width of a telephone too."""

STYLE = """
:root{color-scheme:light;--ink:#1d2433;--soft:#5b6475;--line:#e3e7ee;--paper:#fff;--ground:#f4f6f9}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1160px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.6rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 4px}
h3{font-size:1rem;margin:18px 0 6px}
p{margin:0 0 12px;color:var(--soft);max-width:80ch}
p b{color:var(--ink)}
code{font-size:.9em;overflow-wrap:anywhere}
header,section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:20px;
margin:0 0 16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(110px,1fr));gap:10px;margin:10px 0 4px}
.tile{background:var(--ground);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem}
.doubt{background:#fff6e0;border-left:4px solid #d99a1e;color:var(--ink);padding:8px 12px;
margin:12px 0 0;max-width:none;overflow-wrap:anywhere}
.divider{text-align:center;max-width:none;margin:28px 0 12px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:24px;align-items:start}
.pair>*{min-width:0}
.scroll{overflow-x:auto;margin:0 0 14px}
svg{display:block;width:100%;max-width:560px;height:auto;fill:var(--ink);
font:14px system-ui,"DejaVu Sans",sans-serif}
.scroll svg{max-width:none}
table{border-collapse:collapse;font-size:.9rem;width:100%;font-variant-numeric:tabular-nums}
th{color:var(--soft);font-weight:600;text-align:left}
th,td{padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper)}
td small{display:block;color:var(--soft);line-height:1.35}
.number{text-align:right;white-space:nowrap}
thth:first-child,td:first-child{position:sticky;left:0;background:var(--paper)}
td small{display:block;color:var(--soft);line-height:1.35}
.number{white-space:normal}
figure{margin:0}
figcaption{font-weight:600;font-size:.95rem;margin:0 0 6px;overflow-wrap:anywhere}
figcaption small{display:block;font-weight:400;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.85rem;color:var(--soft);margin:6px 0 14px}
.legend i{display:inline-block;width:14px;height:14px;border-radius:3px;margin-right:6px;vertical-align:-2px}
.figures{display:grid;gap:24px}
.panels{display:flex;flex-wrap:wrap;gap:8px}
.panel{flex:1 1 300px;min-width:0;max-width:560px}
.panel img{display:block;width:100%;height:auto;border-radius:6px}
.panel span{font-size:.8rem;color:var(--soft)}
.crops{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:16px}
.crops img{aspect-ratio:1;object-fit:contain;background:var(--ground)}
.crops .panel{flex-basis:100%}
.crops figcaption{font-size:.85rem}
.absent{background:var(--ground);color:var(--soft);border-radius:6px;padding:24px;width:100%;text-align:center}
@media (max-width:560px){table{font-size:.85rem}th,td{padding-right:8px}
header,section{padding:14px}main{padding:10px 8px 40px}
.crops{grid-template-columns:repeat(2,minmax(0,1fr));gap:12px}}
@media print{body{background:#fff}header,section{break-inside:avoid-page;border:0}}
"""
"""The style sheet."""
