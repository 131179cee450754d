// Bring the figures to life. Where that fails, their images stay.

for (const [selector, Kind] of [["figure.plot", Plot], ["figure.structure", Structure]]) {
  for (const figure of document.querySelectorAll(selector)) {
    try {
      figure.view = new Kind(figure); // for the console, and for tests
    } catch (error) {
      console.error(error);
    }
  }
}

// Paper cannot be unfolded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
