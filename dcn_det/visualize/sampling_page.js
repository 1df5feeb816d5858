"use strict";
// Draws the sampling locations of the unit nearest to a point, as dcn_det/visualize/sampling.py computes them. The point is
// in the page's address, "#x,y" in pixels of the original image; a click changes it.

const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("canvas");
const photo = document.getElementById("photo");
const groupChoice = document.getElementById("group");
const regular = document.getElementById("regular");
const layers = data.layers.map((layer) => ({ ...layer, offset: halves(layer.offset) }));
const groups = Math.max(...layers.map((layer) => layer.shape[0]));

/** Decodes little-endian float16 numbers from base64. */
function halves(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    numbers[i] = bits & 0x8000 ? -size : size;
  }
  return numbers;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const steps = layers.map((layer, i) =>
  i === 0 ? 1 : layer.inputStride / (layers[i - 1].inputStride * layers[i - 1].stride[0]));

/** Samples of one filter: y, x and whether they read the map, in the layer's input. */
function sample(layer, group, [y, x, reads], deformed) {
  const [, kh, kw, height, width] = layer.shape;
  const row = clamp(y, 0, height - 1), column = clamp(x, 0, width - 1);
  const top = Math.floor(row), left = Math.floor(column);
  const below = Math.min(top + 1, height - 1), right = Math.min(left + 1, width - 1);
  const v = row - top, u = column - left;
  const offset = (channel) => {
    const at = ((group % layer.shape[0]) * kh * kw * 2 + channel) * height * width;
    const map = layer.offset;
    return (1 - v) * ((1 - u) * map[at + top * width + left] + u * map[at + top * width + right]) +
      v * ((1 - u) * map[at + below * width + left] + u * map[at + below * width + right]);
  };
  const within = (value, size) => (layer.border === "dcn_v1" ? value >= 0 : value > -1) && value < size;
  const result = [];
  for (let tap = 0; tap < kh * kw; tap++) {
    const moved = deformed ? [offset(2 * tap), offset(2 * tap + 1)] : [0, 0];
    const py = y * layer.stride[0] - layer.padding[0] + Math.floor(tap / kw) * layer.dilation[0] + moved[0];
    const px = x * layer.stride[1] - layer.padding[1] + (tap % kw) * layer.dilation[1] + moved[1];
    result.push([py, px, reads && within(py, layer.input[0]) && within(px, layer.input[1])]);
  }
  return result;
}

/** Samples of a unit of the last layer: x, y in pixels of the original image, and whether they read the map. */
function paths(unit, group, deformed) {
  let cells = [[...unit, true]];
  for (let i = layers.length - 1; i >= 0; i--) {
    cells = cells.flatMap((cell) => sample(layers[i], group, cell, deformed))
      .map(([y, x, reads]) => [y * steps[i], x * steps[i], reads]);
  }
  const stride = layers[0].inputStride;
  return cells.map(([y, x, reads]) => [(x + 0.5) * stride / data.scale[0], (y + 0.5) * stride / data.scale[1], reads]);
}

/** Row and column of the unit whose undeformed filter is centered nearest to a point. */
function unitAt(x, y) {
  const cell = [y * data.scale[1] / layers[0].inputStride - 0.5, x * data.scale[0] / layers[0].inputStride - 0.5];
  layers.forEach((layer, i) => {
    for (const axis of [0, 1]) {
      const middle = (layer.shape[1 + axis] - 1) / 2 * layer.dilation[axis] - layer.padding[axis];
      cell[axis] = (cell[axis] / steps[i] - middle) / layer.stride[axis];
    }
  });
  const shape = layers[layers.length - 1].shape;
  return cell.map((value, axis) => clamp(Math.floor(value + 0.5), 0, shape[3 + axis] - 1));
}

function point() {
  const numbers = location.hash.slice(1).split(",").map(Number);
  const [x, y] = numbers.length === 2 && numbers.every(Number.isFinite) ? numbers : data.start;
  return [clamp(x, 0, data.size[1]), clamp(y, 0, data.size[0])];
}

function show() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.width * data.size[0] / data.size[1]);
  const context = canvas.getContext("2d");
  const factor = canvas.width / data.size[1];
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  const radius = Math.max(1.8, canvas.clientWidth / 300) * ratio;
  const dot = (x, y, size, color) => {
    context.beginPath();
    context.arc(x * factor, y * factor, size, 0, 2 * Math.PI);
    context.fillStyle = color;
    context.fill();
    context.lineWidth = 0.6 * ratio;
    context.strokeStyle = "#1e0000";
    context.stroke();
  };
  const unit = unitAt(...point());
  const chosen = groups > 1 && groupChoice.value !== "all" ? [Number(groupChoice.value)] : [...Array(groups).keys()];
  const plain = paths(unit, 0, false);
  const lines = [];
  for (const group of chosen) {
    for (const [x, y, reads] of paths(unit, group, true)) {
      if (reads) dot(x, y, radius, data.colors[group % data.colors.length]);
      lines.push(`${group} ${x.toFixed(3)} ${y.toFixed(3)} ${Number(reads)}`);
    }
  }
  if (regular.checked) for (const [x, y] of plain) dot(x, y, radius * 0.8, "#fff");
  const center = [0, 1].map((axis) => plain.reduce((sum, each) => sum + each[axis], 0) / plain.length);
  dot(...center, 1.8 * radius, data.unitColor);
  const reading = lines.filter((line) => line.endsWith("1")).length;
  document.getElementById("readout").textContent =
    `Unit in row ${unit[0]}, column ${unit[1]} at ${center[0].toFixed(1)},${center[1].toFixed(1)}: ` +
    `${reading} of ${lines.length} samples are on the feature maps.`;
  document.getElementById("points").textContent = lines.join("\n");
}

canvas.addEventListener("click", (event) => {
  const frame = canvas.getBoundingClientRect();
  const x = (event.clientX - frame.left) / frame.width * data.size[1];
  const y = (event.clientY - frame.top) / frame.height * data.size[0];
  location.replace(`#${x.toFixed(1)},${y.toFixed(1)}`);
});
for (const control of [groupChoice, regular]) control.addEventListener("change", show);
window.addEventListener("hashchange", show);
window.addEventListener("resize", show);
photo.decode().then(show);
