"""The look that all HTML reports share: one self-contained file, light and dark, usable on a phone, no network.

    page = document("Title", header("Title", state="finished"), section("Losses", line_chart("loss", [Series(...)])))
    write_page("report.html", page)

Whatever is not ``Markup`` is escaped, and the page's own content security policy allows no script but this module's:
reports show names and settings that came from files of unknown origin. Charts are in `digpt.charts`.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from markupsafe import Markup

from digpt.charts import element, number
from digpt.files import atomic_write


@dataclass(frozen=True)
class Shown:
    """A number that a table shows in other words, such as with its interval, and sorts by ``value``.

    ``heat`` from 0 to 1 colours the cell, the more the worse.
    """

    value: float
    text: str
    heat: float = 0.0


Cell: TypeAlias = str | int | float | Markup | Shown | None

STYLE = """
:root{color-scheme:light dark;--page:#fbfbfa;--card:#fff;--ink:#1d1f23;--soft:#62666e;--line:#e4e4e1;--grid:#ececea;
--mark:#b8860b;--hint:#fff6d6;--good:#1a7f4b;--bad:#bb2d3b;--busy:#1f62c9;--ramp0:#7cc5c0;--ramp1:#3b2a85;
--s0:#2a6fdb;--s1:#d9622b;--s2:#1f9467;--s3:#a4479c;--s4:#b08900;--s5:#4b4f9f;--s6:#c2405f;--s7:#5d7f8c}
@media screen and (prefers-color-scheme:dark){:root{--page:#131416;--card:#1b1d20;--ink:#e9e9e6;--soft:#9ba0a8;
--line:#2e3135;--grid:#292c30;--mark:#e0b341;--hint:#3a3216;--good:#5ecb95;--bad:#f07f8a;--busy:#7db0ff;--ramp0:#2f7f86;--ramp1:#d9c4ff;
--s0:#6ea8ff;--s1:#f59a62;--s2:#4fc79a;--s3:#d98bd2;--s4:#dcb944;--s5:#9da2f0;--s6:#f0859c;--s7:#93b4c1}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:28px;line-height:1.2;margin:4px 0 8px;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:17px;margin:44px 0 14px;padding-top:14px;border-top:1px solid var(--line);letter-spacing:-.005em}
p{margin:6px 0;max-width:75ch}.eyebrow,.soft,.note,small{color:var(--soft)}.eyebrow,.note,small{font-size:13px}
code,.mono{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.state{display:inline-flex;align-items:center;gap:6px;font-size:13px;font-weight:600;color:var(--c);
vertical-align:middle;white-space:nowrap}
.state::before{content:"";width:8px;height:8px;border-radius:50%;background:var(--c)}
.state.finished{--c:var(--good)}.state.failed{--c:var(--bad)}.state.running{--c:var(--busy)}
.state.stopped{--c:var(--mark)}
.state.passed{--c:var(--good)}.state.measured,.state.recorded{--c:var(--busy)}.state.missing{--c:var(--mark)}
.verdict{font-size:17px;padding:16px 20px;border-left-width:6px}.verdict b{font-size:20px;display:block}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;margin:24px 0;
background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.tiles div{outline:1px solid var(--line);padding:14px 16px;min-width:0}.tiles dt{font-size:13px;color:var(--soft)}
.tiles dd{margin:2px 0 0;font-size:22px;font-weight:600;letter-spacing:-.01em;overflow-wrap:anywhere}
.tiles small{display:block;font-weight:400;letter-spacing:0}
.notice{border:1px solid var(--line);border-left:3px solid var(--c,var(--mark));border-radius:6px;
background:var(--card);padding:10px 14px;margin:12px 0;overflow-wrap:anywhere}.notice.bad{--c:var(--bad)}
.notice.good{--c:var(--good)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:16px}
.cards>*{grid-row:span 3;align-self:start}
.cards>.chart{display:grid;grid-template-rows:subgrid;row-gap:0;align-self:stretch}
.cards>:last-child:nth-child(odd){grid-column:1/-1}.chart .plot{grid-row:3}
figure{margin:0;padding:14px 16px;background:var(--card);border:1px solid var(--line);border-radius:10px;
min-width:0}figcaption{display:flex;flex-wrap:wrap;gap:0 12px;align-items:baseline;margin-bottom:4px}
figcaption b{font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:0 14px;list-style:none;margin:0 0 4px;padding:0;font-size:13px;
color:var(--soft)}.legend li{display:inline-flex;align-items:center;gap:6px;overflow-wrap:anywhere}
.legend i{flex:none;width:14px;border-top:3px solid var(--c);border-radius:1px}
.legend i.dashed{width:18px;height:2px;border:0;
background:repeating-linear-gradient(90deg,var(--c) 0 5px,#0000 5px 8px)}
.key{display:inline-flex;align-items:center;gap:8px;white-space:nowrap}
.key i{flex:none;width:9px;height:9px;border-radius:50%;background:var(--c)}
.splits .legend i{height:10px;width:10px;border:0;background:var(--c);border-radius:2px}
.plot{position:relative;height:220px;margin:12px 8px 26px 52px;touch-action:pan-y}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot span{position:absolute;font-size:12px;line-height:1;color:var(--soft);white-space:nowrap}
.plot .y{right:calc(100% + 8px);transform:translateY(-50%)}.plot .x{top:calc(100% + 9px);transform:translateX(-50%)}
.plot line,.plot path{vector-effect:non-scaling-stroke;fill:none}.plot .grid{stroke:var(--grid)}
.plot .mark{stroke:var(--mark);stroke-dasharray:2 3}.plot .line{stroke-width:1.75;stroke-linejoin:round}
.plot .line.dashed{stroke-dasharray:5 4;stroke-width:1.25;opacity:.85}.plot .dots{stroke-width:6;stroke-linecap:round}
.plot .band{opacity:.18}.cross{position:absolute;top:0;bottom:0;border-left:1px solid var(--soft);pointer-events:none}
.tip{position:absolute;z-index:2;top:6px;pointer-events:none;background:var(--card);border:1px solid var(--line);
border-radius:6px;box-shadow:0 4px 14px #0003;padding:6px 10px;font-size:12px;white-space:nowrap}
.tip td{padding:0 0 0 10px;border:0;background:none;min-width:0!important}.tip td:first-child{padding:0}
.tip i{display:inline-block;width:8px;height:8px;border-radius:50%;background:var(--c);margin-right:6px}
.columns{columns:2 420px;column-gap:16px}.columns>*{break-inside:avoid;margin-bottom:16px}
.rows{display:grid;margin-top:10px;grid-template-columns:minmax(74px,auto) minmax(60px,1fr) auto auto;gap:6px 12px;
align-items:center;font-size:13px}
.rows span{overflow-wrap:anywhere}.rows b{font-weight:600;text-align:right;white-space:nowrap}
.track{position:relative;height:12px;background:var(--grid);border-radius:3px}
.track i{display:block;height:100%;background:var(--c);border-radius:3px}
.track s{position:absolute;top:50%;height:0;border-top:2px solid var(--ink)}
.track s::before,.track s::after{content:"";position:absolute;top:-5px;height:8px;border-left:2px solid var(--ink)}
.track s::after{right:0}
.split{display:flex;gap:2px;height:26px;margin:4px 0 10px;border-radius:5px;overflow:hidden}
.split i{flex:0 1 0;min-width:1px;background:var(--c);color:#fff;font:600 12px/26px system-ui,sans-serif;
text-align:center;overflow:hidden}@media screen and (prefers-color-scheme:dark){.split i{color:#131416}}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:13px}th,td{padding:6px 14px;text-align:left;vertical-align:top}
td{border-top:1px solid var(--line);overflow-wrap:break-word}
td:not(.num){min-width:88px}th{font-weight:600;white-space:nowrap;color:var(--soft)}
.num{text-align:right;white-space:nowrap}tr.marked td{background:var(--hint)}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:2px solid var(--busy);outline-offset:2px}
th button::after{content:" \\2195";opacity:.35}th[aria-sort=ascending] button::after{content:" \\2191";opacity:1}
th[aria-sort=descending] button::after{content:" \\2193";opacity:1}
.only:has(input:checked)~.scroll tr:not(.marked):has(td){display:none}.only{font-size:13px;display:block;margin:0 0 8px}
.tree{overflow-wrap:anywhere}
.tree,.tree ul{list-style:none;margin:0;padding:0 0 0 20px}.tree{padding:0 0 16px}.tree>li{margin:0}
.tree li li{border-left:1px solid var(--line);padding:8px 0 0 16px}
section>*+.cards,section>.cards+*,section>figure+figure{margin-top:16px}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;margin:0 0 18px}
.gallery.four{grid-template-columns:repeat(4,minmax(0,1fr));max-width:760px;margin:0 0 10px}
.gallery figure{padding:10px}.gallery img{display:block;width:100%;max-width:160px;aspect-ratio:1;object-fit:contain;
margin:0 auto 8px;border-radius:4px;background:#fff;image-rendering:pixelated}
.gallery figcaption{display:block;margin:0;font-size:13px;line-height:1.4;overflow-wrap:anywhere}
.gallery .wrong{color:var(--bad)}h3{font-size:14px;margin:20px 0 8px}
details summary{cursor:pointer;font-size:13px;color:var(--soft);margin-top:10px}
@media(max-width:640px){.gallery{grid-template-columns:1fr 1fr}.gallery.four{gap:6px}.gallery.four figure{padding:6px}
.gallery.four figcaption{font-size:11px}main{padding:24px 14px 40px}h1{font-size:23px}
.tiles{grid-template-columns:1fr 1fr}
.tiles dd{font-size:19px}.plot{height:190px;margin-left:46px}.plot .minor{display:none}figure{padding:12px}
.rows{grid-template-columns:minmax(74px,auto) 1fr auto}.rows small{display:none}th,td{padding:6px 10px}}
@media print{*{print-color-adjust:exact}body{background:#fff}main{max-width:none;padding:0}figure,tr{break-inside:avoid}
h2,h3{break-after:avoid}.only,th button::after{display:none}.scroll{overflow:visible;border:0}th{white-space:normal}}
"""

SCRIPT = """
const text=(tag,content)=>{const e=document.createElement(tag);e.textContent=content;return e};
for(const head of document.querySelectorAll('th button'))head.onclick=()=>{
 const th=head.parentNode,body=th.closest('table').tBodies[0],column=th.cellIndex;
 const sign=th.ariaSort==='ascending'?-1:1;
 for(const other of th.parentNode.cells)other.removeAttribute('aria-sort');
 th.ariaSort=sign>0?'ascending':'descending';
 const key=row=>{const c=row.cells[column];return c.dataset.v===undefined?c.textContent:+c.dataset.v};
 const compare=(a,b)=>typeof a==='number'&&typeof b==='number'?a-b:
  typeof a==='number'?-1:typeof b==='number'?1:a.localeCompare(b,'en',{numeric:true});
 body.append(...[...body.rows].sort((a,b)=>{
  const x=key(a),y=key(b);return(x==='')-(y==='')||sign*compare(x,y)}))};
for(const plot of document.querySelectorAll('.plot')){
 const series=JSON.parse(plot.dataset.series),[low,high]=JSON.parse(plot.dataset.range);
 const show=v=>plot.dataset.kind==='percent'?(100*v).toFixed(1)+' %':(+v.toPrecision(4)).toLocaleString('en',
  {maximumSignificantDigits:4,notation:Math.abs(v)<1e-3&&v?'scientific':'standard'});
 const cross=text('div',''),tip=text('div','');cross.className='cross';tip.className='tip';
 const leave=()=>{cross.remove();tip.remove()};
 const move=event=>{
  const box=plot.getBoundingClientRect(),x=low+(high-low)*(event.clientX-box.left)/box.width;
  if(!(x>=low-(high-low)*.02&&x<=high+(high-low)*.02))return leave();
  const near=series.map(s=>s[2].reduce((best,v,i)=>Math.abs(v-x)<Math.abs(s[2][best]-x)?i:best,0));
  const at=series.map((s,i)=>s[2][near[i]]).reduce((a,b)=>Math.abs(a-x)<=Math.abs(b-x)?a:b);
  const table=text('table',''),share=(at-low)/(high-low);
  series.forEach((s,i)=>{const k=near[i],row=table.insertRow(),dot=text('i','');
   if(Math.abs(s[2][k]-at)>(high-low)*.02)return row.remove();
   dot.style.setProperty('--c',s[1]);row.insertCell().append(dot,s[0]);
   const value=show(s[3][k])+(s[4]&&s[4][k]!==s[5][k]?' ('+show(s[4][k])+' to '+show(s[5][k])+')':'');
   const cell=row.insertCell();cell.className='num';cell.textContent=value});
  tip.replaceChildren(text('b',plot.dataset.label+' '+Math.round(at).toLocaleString('en')),table);
  cross.style.left=100*share+'%';plot.append(cross,tip);
  tip.style.left=Math.min(Math.max(share*box.width+(share<.5?12:-12-tip.offsetWidth),-40),
   Math.max(box.width-tip.offsetWidth+8,-40))+'px'};
 plot.onpointermove=move;plot.onpointerdown=move;plot.onpointerleave=leave}
"""


def policy() -> str:
    """The content security policy of a page: its own styles, pictures and script, and no network."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def document(title: str, *body: Markup | None, meta: Mapping[str, str] | None = None) -> str:
    """The whole page as text; ``body`` are the parts from this module and `digpt.charts`, None ones left out.

    ``meta`` is what programs may want to know of the page.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        *(element("meta", name=name, content=content) for name, content in (meta or {}).items()),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    content = element("body", element("main", *body), element("script", Markup(SCRIPT)))
    return f"<!doctype html>\n{element('html', head, content, lang='en')}\n"


def write_page(path: str | Path, page: str) -> Path:
    """Write ``page`` all or nothing; return the path. A lone surrogate (from a file name) is written as ``?``."""
    atomic_write(path, page.encode("utf-8", errors="replace"))
    return Path(path)


def header(title: str, *, eyebrow: str = "", state: str = "", lines: Sequence[str] = ()) -> Markup:
    """The top of a page. ``state`` (finished, running, stopped, failed) is shown with its colour."""
    badge = element("span", state, class_=f"state {state}") if state else None
    above = element("div", eyebrow, Markup(" &nbsp; ") if badge else None, badge, class_="eyebrow")
    return element("header", above, element("h1", title), *(element("p", line, class_="soft") for line in lines))


def section(title: str, *content: Markup | None) -> Markup:
    """A part with a heading; empty when all of its content is."""
    kept = [part for part in content if part]
    return element("section", element("h2", title), *kept) if kept else Markup("")


def unbroken(text: str) -> Markup:
    """Text on one line: wide tables scroll, and without this the browser would break every name to save width."""
    return element("span", text, style="white-space:nowrap")


def cards(*content: Markup | None) -> Markup:
    """Charts side by side where the page is wide enough."""
    kept = [part for part in content if part]
    return element("div", *kept, class_="cards") if kept else Markup("")


def columns(*content: Markup | None) -> Markup:
    """Tables of different lengths, in two columns where the page is wide enough."""
    kept = [part for part in content if part]
    return element("div", *kept, class_="columns") if kept else Markup("")


def notice(message: str, *, bad: bool = False, good: bool = False) -> Markup:
    """A line that must not be overlooked."""
    style = "bad" if bad else "good" if good else ""
    return element("div", message, class_=f"notice {style}".rstrip())


def verdict(claim: str, *lines: str, good: bool | None) -> Markup:
    """What a page has to say, at its top; ``good`` None is neither good nor bad."""
    style = {True: "good", False: "bad", None: ""}[good]
    said = [element("div", line) for line in lines]
    return element("div", element("b", claim), *said, class_=f"notice verdict {style}".rstrip())


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""


def tiles(entries: Sequence[Tile]) -> Markup:
    """Headline numbers in a row."""
    shown = [
        element("div", element("dt", t.label), element("dd", t.value, element("small", t.note) if t.note else None))
        for t in entries
    ]
    return element("dl", *shown, class_="tiles") if shown else Markup("")


@dataclass(frozen=True)
class Column:
    """A column's title; ``numeric`` ones are aligned right and shown by ``show``."""

    title: str
    numeric: bool = False
    show: Callable[[float], str] = number


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    marked: Collection[int] = (),
    only_marked: str = "",
) -> Markup:
    """A table that a click on a heading sorts; None is an empty cell.

    Args:
        marked: indices of the rows to highlight.
        only_marked: label of a checkbox that hides the other rows; empty: no checkbox.
    """
    if not rows:
        return Markup("")
    heads = [
        element("th", element("button", c.title), scope="col", class_="num" if c.numeric else None) for c in columns
    ]
    body = [
        element("tr", *map(_cell, row, columns), class_="marked" if index in marked else None)
        for index, row in enumerate(rows)
    ]
    whole = element("table", element("thead", element("tr", *heads)), element("tbody", *body))
    box = element("label", element("input", type="checkbox"), " ", only_marked, class_="only") if only_marked else None
    return element("div", box, element("div", whole, class_="scroll"))


def _cell(value: Cell, column: Column) -> Markup:
    style = "num" if column.numeric else None
    if isinstance(value, Shown):
        sortable = value.value if math.isfinite(value.value) else None
        heat = f"background:color-mix(in srgb,var(--bad) {60 * value.heat:.0f}%,transparent)" if value.heat else None
        return element("td", value.text, data_v=sortable, style=heat, class_=style)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        sortable = value if math.isfinite(value) else None
        return element("td", column.show(value) if column.numeric else number(value), data_v=sortable, class_=style)
    return element("td", "" if value is None else value, class_=style)
