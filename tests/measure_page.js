// What a page in a frame is like. Contrast of text, 4.5 : 1: WCAG 2.2, 1.4.3, with its relative
// luminance.
const luminance = c => { const [r, g, b] = c.map(v => { v /= 255;
  return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
  return .2126 * r + .7152 * g + .0722 * b; };
const parse = c => (c.match(/[\d.]+/g) || []).map(Number);
const behind = (e, view) => { for (; e; e = e.parentElement) {
  const c = parse(view.getComputedStyle(e).backgroundColor);
  if (c.length == 3 || c[3] == 1) return c.slice(0, 3); } return [255, 255, 255]; };
const own = e => [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.data.trim()).join("");
// What a browser fetches by itself, whatever a policy then says.
const ASKS = "img, link, script, iframe, object, embed, image, use, source, video, audio";
function measured(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const outside = [], faint = [], small = [];
  for (const e of page.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect(), style = view.getComputedStyle(e);
    if (!box.width || e.closest(".unseen")) continue;
    if (box.right > root.clientWidth + 1 && !e.parentElement.closest(".scroll, .panel, figure"))
      outside.push(e.tagName + "." + e.className);
    if (!own(e) || e.closest("title, desc")) continue;
    const inside = e instanceof view.SVGElement;
    const ink = parse(inside ? style.fill : style.color).slice(0, 3);
    const [a, b] = [luminance(ink), luminance(behind(e, view))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faint.push(e.tagName + "." + (e.className.baseVal ?? e.className) + " " + own(e).slice(0, 30) + " " + contrast.toFixed(2));
    if (!inside && parseFloat(style.fontSize) < 10) small.push(own(e).slice(0, 30));
  }
  const meet = [];
  for (const chart of page.querySelectorAll("svg")) {
    const labels = [...chart.querySelectorAll(".label")].map(e => [e.textContent, e.getBoundingClientRect()]);
    labels.forEach(([n, p], i) => labels.slice(i + 1).forEach(([m, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 2) meet.push(n + " / " + m); }));
  }
  return { width: root.clientWidth, needs: root.scrollWidth, outside, faint, small, meet,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    charts: page.querySelectorAll("svg:not(.key)").length, tables: page.querySelectorAll("table").length,
    unheaded: [...page.querySelectorAll("table")].filter(t => !t.querySelector("th[scope]")).length,
    unnamed: [...page.querySelectorAll("svg[role=img]")].filter(s => !s.querySelector("title") && !s.getAttribute("aria-label")).length };
}
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  document.getElementById("found").textContent = JSON.stringify(
    { frames: frames.map(measured), title: document.title, asked: frames.flatMap(f => [...f.contentDocument.querySelectorAll(ASKS)]).filter(e => !/^(data:|#)/.test(
        e.getAttribute("src") ?? e.getAttribute("href") ?? e.getAttribute("xlink:href") ?? e.getAttribute("data") ?? "#")).length });
});
