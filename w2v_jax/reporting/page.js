// The button that chooses the colour scheme: that of the system, light, dark.
const button = document.getElementById("scheme");
const schemes = ["system", "light", "dark"];
let chosen = 0;
button.hidden = false;
button.addEventListener("click", () => {
  chosen = (chosen + 1) % schemes.length;
  document.documentElement.dataset.scheme = schemes[chosen];
  button.textContent = `colours: ${schemes[chosen]}`;
});

// A page within another one (an iframe with srcdoc, as in notebooks) has the address of that one, where links to parts lead.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && location.protocol === "about:") {
    event.preventDefault();
    document.getElementById(link.getAttribute("href").slice(1)).scrollIntoView();
  }
});
