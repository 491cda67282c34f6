// What a page's readers would trip over: [] is good. The first things that axe-core looks for, without its 500 kB.
() => {
  const found = [], visible = (node) => node.checkVisibility({ visibilityProperty: true });
  const told = (what, node) => found.push(`${what}: ${node.outerHTML.slice(0, 100)}`);
  for (const node of document.querySelectorAll("button, a[href], input, select, textarea, canvas, pre[tabindex]")) {
    if (!visible(node)) continue;
    const labels = [...(node.labels || [])].map((label) => label.textContent.trim()).join("");
    if (!(node.getAttribute("aria-label") || node.textContent.trim() || labels)) told("no name", node);
    if (["BUTTON", "SELECT"].includes(node.tagName) && node.getBoundingClientRect().height < 24) told("too small", node);
  }
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  if (!document.documentElement.lang || !document.title) found.push("no language or title");
  const levels = [...document.querySelectorAll("h1,h2,h3,h4")].map((heading) => +heading.tagName[1]);
  levels.forEach((level, i) => { if (i && level > levels[i - 1] + 1) found.push("heading level skipped"); });

  // WCAG contrast of every visible text against the nearest opaque background
  const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const linear = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !visible(node) || node.disabled || node.closest("script,style,option")) continue;
    const a = light(rgb(getComputedStyle(node).color)), b = light(behind(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) told(`contrast ${ratio.toFixed(2)}`, node);
  }
  return found;
}
