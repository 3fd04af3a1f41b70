"use strict";
(() => {
  const data = JSON.parse(document.getElementById("school-data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const places = new DataView(bytes(data.positions));
  const headings = new Int8Array(bytes(data.headings));
  const canvas = document.querySelector(".school canvas");
  const context = canvas.getContext("2d");
  const [button, slider, output] = [".controls button", ".controls input", ".controls output"].map((q) => document.querySelector(q));
  const last = data.steps.length - 1;
  const EDGES = [];
  for (let a = 0; a < 8; a++) for (const bit of [1, 2, 4]) if (!(a & bit)) EDGES.push([a, a | bit]);
  let frame = 0, playing = false, yaw = 0.6, tilt = 0.42, before = 0, grip = null;
  slider.max = String(last);
  canvas.tabIndex = 0;

  // a point of the cube [-1, 1]^3 on the canvas; depth grows away from the eye
  function project(x, y, z) {
    const cx = Math.cos(yaw), sx = Math.sin(yaw), ct = Math.cos(tilt), st = Math.sin(tilt);
    const right = cx * x - sx * y, back = sx * x + cx * y;
    const depth = ct * back - st * z, up = st * back + ct * z;
    const size = 165 * 4.6 / (4.6 + depth);
    return [canvas.width / 2 + size * right, canvas.height / 2 - size * up, depth];
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = style.getPropertyValue("--grid");
    context.lineWidth = 1;
    const corner = (n) => project(n & 1 ? 1 : -1, n & 2 ? 1 : -1, n & 4 ? 1 : -1);
    for (const [a, b] of EDGES) {
      const [p, q] = [corner(a), corner(b)];
      context.beginPath(); context.moveTo(p[0], p[1]); context.lineTo(q[0], q[1]); context.stroke();
    }
    const fish = [];
    for (let i = 0; i < data.fish; i++) {
      const k = (frame * data.fish + i) * 3;
      const [x, y, z] = [0, 1, 2].map((axis) => places.getUint16(2 * (k + axis), true) / 32767.5 - 1);
      const [u, v, w] = [0, 1, 2].map((axis) => headings[k + axis] / 127);
      fish.push([project(x, y, z), project(x - 0.075 * u, y - 0.075 * v, z - 0.075 * w), [u, v, w]]);
    }
    fish.sort((a, b) => b[0][2] - a[0][2]);
    context.lineCap = "round";
    for (const [head, tail, heading] of fish) {
      const rgb = heading.map((part) => Math.round(255 * (0.45 + 0.38 * part)));
      context.globalAlpha = Math.max(0.35, Math.min(1, 0.75 - 0.25 * head[2]));
      context.strokeStyle = context.fillStyle = `rgb(${rgb})`;
      context.lineWidth = 2;
      context.beginPath(); context.moveTo(tail[0], tail[1]); context.lineTo(head[0], head[1]); context.stroke();
      context.beginPath(); context.arc(head[0], head[1], 3, 0, 7); context.fill();
    }
    context.globalAlpha = 1;
    slider.value = String(frame);
    output.textContent = `step ${data.steps[frame]}, P ${data.polarization[frame].toFixed(2)}, M ${data.rotation[frame].toFixed(2)}`;
  }

  function show(number) { frame = Math.max(0, Math.min(last, number)); draw(); }

  function play(on) {
    playing = on;
    button.textContent = on ? "Pause" : "Play";
    if (on) { if (frame === last) frame = 0; before = 0; requestAnimationFrame(tick); }
  }

  function tick(now) {
    if (!playing) return;
    if (now - before > 66) {
      before = now;
      if (frame === last) { play(false); return; }
      show(frame + 1);
    }
    requestAnimationFrame(tick);
  }

  button.addEventListener("click", () => play(!playing));
  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { play(false); show(frame + by); event.preventDefault(); }
    if (event.key === " ") { play(!playing); event.preventDefault(); }
  });
  canvas.addEventListener("pointerdown", (event) => { grip = [event.clientX, event.clientY, yaw, tilt]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip) return;
    yaw = grip[2] - (event.clientX - grip[0]) / 150;
    tilt = Math.max(-1.5, Math.min(1.5, grip[3] + (event.clientY - grip[1]) / 150));
    draw();
  });
  canvas.addEventListener("pointerup", () => { grip = null; });
  canvas.addEventListener("pointercancel", () => { grip = null; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
})();
