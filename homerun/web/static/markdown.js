// Markdown to document nodes. Text only ever becomes text nodes: what a model writes cannot become markup or script.
const BLOCK = /^(```|#{1,6} |\s*[-*+] |\s*\d+[.)] |> |\|)/;
const INLINE = /(`+)(.+?)\1|\*\*(?=\S)(.+?)\*\*|__(?=\S)(.+?)__|\*(?=\S)(.+?)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/s;

const node = (tag, ...children) => {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
};

function inline(text) {
  const found = [];
  for (let match; (match = INLINE.exec(text)); text = text.slice(match.index + match[0].length)) {
    if (match.index) found.push(text.slice(0, match.index));
    if (match[2] !== undefined) found.push(node("code", match[2]));
    else if (match[3] ?? match[4]) found.push(node("strong", ...inline(match[3] ?? match[4])));
    else if (match[5]) found.push(node("em", ...inline(match[5])));
    else {
      const link = node("a", match[6]);
      link.href = match[7];
      link.rel = "noopener noreferrer nofollow";
      link.target = "_blank";
      found.push(link);
    }
  }
  if (text) found.push(text);
  return found;
}

// Paragraph text: single line breaks are kept.
const lines = (rows) => rows.flatMap((row, i) => (i ? [node("br"), ...inline(row)] : inline(row)));

export function markdown(text) {
  const rows = text.split("\n"), root = document.createDocumentFragment();
  for (let i = 0; i < rows.length; ) {
    const row = rows[i];
    if (!row.trim()) { i += 1; continue; }
    if (row.startsWith("```")) {
      const code = [];
      for (i += 1; i < rows.length && !rows[i].startsWith("```"); i += 1) code.push(rows[i]);
      i += 1;
      const block = node("pre", node("code", code.join("\n")));
      block.tabIndex = 0;
      root.append(block);
    } else if (/^#{1,6} /.test(row)) {
      const level = row.match(/^#+/)[0].length; // below the page's own heading
      root.append(node(`h${Math.min(6, level + 1)}`, ...inline(row.replace(/^#+ /, ""))));
      i += 1;
    } else if (/^\s*([-*+]|\d+[.)]) /.test(row)) {
      const ordered = /^\s*\d/.test(row), list = node(ordered ? "ol" : "ul");
      if (ordered) list.start = parseInt(row, 10);
      for (; i < rows.length && /^\s*([-*+]|\d+[.)]) /.test(rows[i]); i += 1)
        list.append(node("li", ...inline(rows[i].replace(/^\s*([-*+]|\d+[.)]) /, ""))));
      root.append(list);
    } else if (row.startsWith("> ")) {
      const quote = [];
      for (; i < rows.length && rows[i].startsWith(">"); i += 1) quote.push(rows[i].replace(/^> ?/, ""));
      root.append(node("blockquote", markdown(quote.join("\n"))));
    } else if (row.startsWith("|") && /^\|[\s:|-]+\|?\s*$/.test(rows[i + 1] ?? "")) {
      const cells = (line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim());
      const body = node("tbody"), table = node("table", node("thead", node("tr", ...cells(row).map((c) => node("th", ...inline(c))))), body);
      for (i += 2; i < rows.length && rows[i].startsWith("|"); i += 1)
        body.append(node("tr", ...cells(rows[i]).map((c) => node("td", ...inline(c)))));
      root.append(table);
    } else {
      const paragraph = [row];
      for (i += 1; i < rows.length && rows[i].trim() && !BLOCK.test(rows[i]); i += 1) paragraph.push(rows[i]);
      root.append(node("p", ...lines(paragraph)));
    }
  }
  return root;
}
