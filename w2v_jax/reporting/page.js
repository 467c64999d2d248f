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
