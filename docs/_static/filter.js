// A field above a long list hides the entries that lack the words typed into it.
document.addEventListener("DOMContentLoaded", () => {
  const field = document.querySelector("#filter");
  if (!field) return;
  const entries = [...document.querySelectorAll(".claims tbody tr, .exhibit")];
  const count = document.querySelector("#filter-count");
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of entries) {
      const text = entry.textContent.toLowerCase();
      entry.hidden = !words.every(word => text.includes(word));
      shown += !entry.hidden;
    }
    count.textContent = `${shown} of ${entries.length}`;
  };
  field.addEventListener("input", show);
  field.closest("p").hidden = false;
  show();
});
