"use strict";
// Sliders, linked zoom, sorting, folded parts, and the place in the contents. The page can be read without any of them.
(() => {
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // Before and after, and zoom: the state of an image is a few CSS variables on its article.
  for (const item of document.querySelectorAll(".item")) {
    const slider = item.querySelector(".split"), output = item.querySelector("output");
    const views = [...item.querySelectorAll(".viewport")];
    let zoom = 1, x = 0, y = 0; // x, y: where the picture's corner lies, in percent of the view

    const showSplit = () => {
      item.style.setProperty("--split", slider.value + "%");
      slider.setAttribute("aria-valuetext", slider.value + " % original, " + (100 - slider.value) + " % reconstruction");
      output.textContent = slider.value + " %";
    };
    const showZoom = () => {
      x = clamp(x, 100 * (1 - zoom), 0);
      y = clamp(y, 100 * (1 - zoom), 0);
      for (const [name, value] of [["--zoom", zoom], ["--x", x], ["--y", y]]) item.style.setProperty(name, value);
      item.classList.toggle("zoomed", zoom > 1);
      item.classList.toggle("close", zoom >= 3);
    };
    // About a point of the view, in percent of it.
    const zoomTo = (wanted, atX = 50, atY = 50) => {
      const next = clamp(wanted, 1, 16);
      x = atX - (atX - x) * next / zoom;
      y = atY - (atY - y) * next / zoom;
      zoom = next;
      showZoom();
    };
    const place = (view, event) => {
      const box = view.getBoundingClientRect();
      return [100 * (event.clientX - box.left) / box.width, 100 * (event.clientY - box.top) / box.height];
    };

    slider.addEventListener("input", showSplit);
    showSplit();
    for (const button of item.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => zoomTo({ in: zoom * 1.5, out: zoom / 1.5, whole: 1 }[button.dataset.zoom]));
    }
    for (const view of views) {
      view.addEventListener("keydown", event => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const step = 8;
        const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
        if (event.key === "+" || event.key === "=") zoomTo(zoom * 1.5);
        else if (event.key === "-") zoomTo(zoom / 1.5);
        else if (event.key === "0") zoomTo(1);
        else if (moves[event.key] && zoom > 1) { x += moves[event.key][0]; y += moves[event.key][1]; showZoom(); }
        else return;
        event.preventDefault();
      });
      view.addEventListener("wheel", event => { // with Ctrl, or a pinch on a touch pad: else the page scrolls
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        zoomTo(zoom * Math.exp(-event.deltaY / 300), ...place(view, event));
      }, { passive: false });
      view.addEventListener("dblclick", event => zoomTo(zoom > 1 ? 1 : 4, ...place(view, event)));
      view.addEventListener("pointerdown", event => {
        if (event.button !== 0) return;
        const compares = view.classList.contains("compare");
        const split = event.target.classList.contains("bar") || (compares && zoom === 1);
        if (!split && zoom === 1) return;
        const [startX, startY] = place(view, event), fromX = x, fromY = y;
        view.setPointerCapture(event.pointerId);
        const move = moved => {
          const [nowX, nowY] = place(view, moved);
          if (split) { slider.value = nowX; showSplit(); }
          else { x = fromX + nowX - startX; y = fromY + nowY - startY; showZoom(); }
        };
        const end = () => { view.removeEventListener("pointermove", move); };
        view.addEventListener("pointermove", move);
        view.addEventListener("pointerup", end, { once: true });
        view.addEventListener("pointercancel", end, { once: true });
      });
    }
  }

  // Sorting: by the number or text of a column; again the other way round; missing values stay at the end.
  const announce = document.getElementById("announce");
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const number = head.dataset.kind === "number";
      const up = head.getAttribute("aria-sort") !== "ascending";
      const value = row => row.cells[column].dataset.value;
      const order = (a, b) => number ? value(a) - value(b) : value(a).localeCompare(value(b), undefined, { numeric: true });
      const known = [...body.rows].filter(row => value(row) !== ""), missing = [...body.rows].filter(row => value(row) === "");
      known.sort((a, b) => up ? order(a, b) : order(b, a));
      body.append(...known, ...missing);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      announce.textContent = "Sorted by " + head.innerText.trim() + ", " + (up ? "ascending" : "descending");
    }));
  }

  // A phone shows long parts folded; a link to something in them unfolds them, and so does a printer.
  const long = [...document.querySelectorAll("details.long")];
  if (matchMedia("(max-width: 40rem)").matches) for (const part of long) part.open = false;
  const unfold = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target && target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  if (location.hash) unfold();
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });

  // The section that is being read.
  const links = new Map([...document.querySelectorAll(".contents a")].map(a => [a.hash.slice(1), a]));
  const inView = new Set();
  const observer = new IntersectionObserver(entries => {
    for (const entry of entries) entry.isIntersecting ? inView.add(entry.target.id) : inView.delete(entry.target.id);
    const current = [...links.keys()].find(id => inView.has(id));
    if (!current) return;
    for (const [id, link] of links) id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }, { rootMargin: "-10% 0px -70% 0px" });
  for (const id of links.keys()) observer.observe(document.getElementById(id));
})();
