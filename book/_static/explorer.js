/* The explorer of the book: deep networks computed in the page, beside what the book predicts. */
(() => {
"use strict";

/* Everything that computes. It also runs in a worker, which is made from its text. */
function kernel() {
  const CLASSES = 10, BATCHES = 4, STEPS = 40, MOMENTUM = 0.1, SHOWN = 80;
  const HEAD = 100001, LABELS = 100002, OTHERS = 100003; // streams; 0 is the batch, then layers
  const ACTIVATIONS = {
    linear: [x => x, () => 1],
    tanh: [Math.tanh, x => 1 - Math.tanh(x) ** 2],
    sin: [Math.sin, Math.cos],
    relu: [x => x > 0 ? x : 0, x => x > 0 ? 1 : 0],
  };
  const batchNorm = s => s.norm === "batch" || s.norm === "centred";
  const odd = s => s.activation !== "relu";
  const training = s => !batchNorm(s) || s.statistics === "batch";
  const gainOf = (s, layer) => s.gain * layer ** -s.exponent;
  const plainLinear = s => batchNorm(s) && s.activation === "linear" && !s.shortcut && training(s);
  /* Directions that the batch has: a mean takes one, and an activation gives it back. */
  const rank = s => s.samples - (s.norm === "centred" && plainLinear(s) ? 1 : 0);

  function words(seed, network, stream) { // sfc32
    let a = seed | 0, b = network | 0, c = stream | 0, k = 1;
    const next = () => {
      const t = (a + b | 0) + k | 0;
      k = k + 1 | 0; a = b ^ b >>> 9; b = c + (c << 3) | 0;
      c = (c << 21 | c >>> 11) + t | 0;
      return t >>> 0;
    };
    for (let i = 0; i < 15; i++) next();
    return next;
  }

  function normals(count, ...key) {
    const next = words(...key), out = new Float64Array(count);
    for (let i = 0; i < count; i += 2) {
      const r = Math.sqrt(-2 * Math.log((next() + 0.5) / 2 ** 32));
      const angle = 2 * Math.PI * (next() + 0.5) / 2 ** 32;
      out[i] = r * Math.cos(angle);
      if (i + 1 < count) out[i + 1] = r * Math.sin(angle);
    }
    return out;
  }

  /* Orthonormal columns, uniformly distributed, from normal numbers (rows, columns). */
  function frame(x, rows, cols) {
    const q = new Float64Array(rows * cols), signs = [], taus = [], sum = new Float64Array(cols);
    for (let k = 0; k < cols; k++) {
      let square = 0;
      for (let i = k; i < rows; i++) square += x[i * cols + k] ** 2;
      const norm = Math.sqrt(square), alpha = x[k * cols + k], sign = alpha < 0 ? -1 : 1;
      for (let i = k; i < rows; i++) x[i * cols + k] /= alpha + sign * norm;
      x[k * cols + k] = 1;
      signs.push(sign); taus.push(1 + Math.abs(alpha) / norm);
      q[k * cols + k] = 1;
    }
    for (let k = cols - 1; k >= 0; k--) {
      sum.fill(0);
      for (let i = k; i < rows; i++) for (let j = k, v = x[i * cols + k]; j < cols; j++)
        sum[j] += v * q[i * cols + j];
      for (let i = k; i < rows; i++) for (let j = k, v = taus[k] * x[i * cols + k]; j < cols; j++)
        q[i * cols + j] -= v * sum[j];
    }
    for (let i = 0; i < q.length; i++) q[i] *= -signs[i % cols];
    return q;
  }

  function weights(s, network, layer) {
    const d = s.width, w = normals(d * d, s.seed, network, layer);
    return s.init === "orthogonal" ? frame(w, d, d) : w.map(v => v / Math.sqrt(d));
  }

  function headOf(s, network) {
    const d = s.width, normal = normals(d * CLASSES, s.seed, network, HEAD);
    if (s.init === "gaussian") return normal.map(v => v * Math.sqrt(2 / (d + CLASSES)));
    return transposed(frame(transposed(normal, CLASSES, d), d, CLASSES), d, CLASSES);
  }

  function transposed(a, rows, cols) {
    const out = new Float64Array(a.length);
    for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) out[j * rows + i] = a[i * cols + j];
    return out;
  }

  function times(a, b, rows, inner, cols) {
    const out = new Float64Array(rows * cols);
    for (let i = 0; i < rows; i++) {
      const to = i * cols, at = i * inner;
      let k = 0;
      for (; k + 3 < inner; k += 4) { // four rows at a time: out is read and written once
        const p = a[at + k], q = a[at + k + 1], r = a[at + k + 2], s = a[at + k + 3], row = k * cols;
        for (let j = 0; j < cols; j++) out[to + j] += p * b[row + j] + q * b[row + cols + j]
          + r * b[row + 2 * cols + j] + s * b[row + 3 * cols + j];
      }
      for (; k < inner; k++) for (let j = 0, p = a[at + k]; j < cols; j++) out[to + j] += p * b[k * cols + j];
    }
    return out;
  }

  function peak(a) {
    let most = 0;
    for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]));
    return most;
  }
  function energy(a, size = 1) {
    let sum = 0;
    for (let i = 0; i < a.length; i++) sum += (a[i] / size) ** 2;
    return sum;
  }
  function logNorm(a) { // squares of small numbers are zero
    const size = peak(a);
    return size > 0 ? Math.log(size) + 0.5 * Math.log(energy(a, size)) : -Infinity;
  }

  /* Mean and variance of some columns of a row. */
  function moments(y, from, count, step, centred) {
    let mean = 0, square = 0;
    if (centred) for (let j = 0; j < count; j++) mean += y[from + j * step] / count;
    for (let j = 0; j < count; j++) square += (y[from + j * step] - mean) ** 2;
    return [mean, square / count];
  }

  /* Normalise rows, or parts of them, or columns, in place; the scales that were divided by. */
  function normalise(y, lines, count, centred, columns) {
    const scales = new Float64Array(lines), step = columns ? lines : 1;
    for (let i = 0; i < lines; i++) {
      const from = columns ? i : i * count, [mean, square] = moments(y, from, count, step, centred);
      scales[i] = Math.sqrt(square) || 1;
      for (let j = 0; j < count; j++) y[from + j * step] = (y[from + j * step] - mean) / scales[i];
    }
    return scales;
  }

  function backThroughNorm(g, x, scales, lines, count, centred, columns) {
    const step = columns ? lines : 1;
    for (let i = 0; i < lines; i++) {
      const from = columns ? i : i * count;
      let mean = 0, along = 0;
      for (let j = 0; j < count; j++) {
        const at = from + j * step;
        mean += centred ? g[at] / count : 0; along += g[at] * x[at] / count;
      }
      for (let j = 0; j < count; j++) {
        const at = from + j * step;
        g[at] = (g[at] - mean - x[at] * along) / scales[i];
      }
    }
  }

  /* Statistics that evaluation uses, from other batches, which are normalised on the way. */
  function averages(s, y) {
    const { width: d, samples: n } = s, centred = s.norm === "centred", all = n * BATCHES;
    const means = new Float64Array(d), variances = new Float64Array(d);
    if (s.statistics === "recalibrated") {
      for (let i = 0; i < d; i++) [means[i], variances[i]] = moments(y, i * all, all, 1, centred);
      normalise(y, d, all, centred);
      return [means, variances];
    }
    const bessel = centred ? n / (n - 1) : 1;
    for (let i = 0; i < d; i++) {
      const seen = [];
      for (let b = 0; b < BATCHES; b++) seen.push(moments(y, i * all + b * n, n, 1, centred));
      variances[i] = 1;
      for (let t = 0; t < STEPS; t++) {
        const [mean, square] = seen[t % BATCHES];
        means[i] += MOMENTUM * (mean - means[i]);
        variances[i] += MOMENTUM * (bessel * square - variances[i]);
      }
    }
    normalise(y, d * BATCHES, n, centred);
    return [means, variances];
  }

  function activate(s, z, x, layer) {
    const [f] = ACTIVATIONS[s.activation], alpha = gainOf(s, layer);
    return z.map((v, i) => f(alpha * v) + s.shortcut * x[i]);
  }

  /* Rows (few, long) to the logs of the pivots of their triangular factor; null if rank is lost. */
  function pivots(a, rows, cols) {
    const q = Float64Array.from(a), logs = [];
    let largest = 0;
    for (let k = 0; k < rows; k++) {
      const row = q.subarray(k * cols, (k + 1) * cols), norm = Math.sqrt(energy(row));
      largest = Math.max(largest, norm);
      if (!(norm > 1e-12 * largest)) return null;
      logs.push(Math.log(norm));
      for (let i = k + 1; i < rows; i++) {
        let dot = 0;
        for (let j = 0; j < cols; j++) dot += row[j] * q[i * cols + j];
        for (let j = 0, r = dot / norm ** 2; j < cols; j++) q[i * cols + j] -= r * row[j];
      }
    }
    return logs;
  }

  /* The batch as as many rows as it has directions: features, or samples, without their mean. */
  function directions(s, x) {
    const { width: d, samples: n } = s, m = rank(s);
    if (m >= d) return [x, d, n];
    const rows = transposed(x, d, n);
    if (m === n) return [rows, n, d];
    const v = new Float64Array(n).fill(1 / Math.sqrt(n)); // a reflection takes the mean to row 0
    v[0] += 1;
    const along = times(v, rows, 1, n, d), scale = 2 / energy(v);
    return [rows.map((r, i) => r - scale * v[Math.floor(i / d)] * along[i % d]).slice(d), m, d];
  }

  /* The isometry gap; below full rank that of the directions that there are. */
  function gap(s, x) {
    const [rows, m, length] = directions(s, x), logs = pivots(rows, m, length);
    if (!logs) return NaN;
    return Math.max(0, Math.log(energy(rows) / m) - 2 * logs.reduce((a, b) => a + b) / m);
  }

  /* Eigenvalues of the Gram matrix by Jacobi's rotations. */
  function spectrum(s, x) {
    const [rows, m, length] = directions(s, x), a = times(rows, transposed(rows, m, length), m, length, m);
    for (let sweep = 0; sweep < 12; sweep++) for (let p = 0; p < m; p++) for (let q = p + 1; q < m; q++) {
      const pq = a[p * m + q];
      if (Math.abs(pq) < 1e-15 * Math.abs(a[p * m + p] + a[q * m + q])) continue;
      const theta = (a[q * m + q] - a[p * m + p]) / (2 * pq);
      const t = Math.sign(theta || 1) / (Math.abs(theta) + Math.sqrt(theta ** 2 + 1));
      const c = 1 / Math.sqrt(t * t + 1), r = t * c;
      for (let k = 0; k < m; k++) {
        const kp = a[k * m + p], kq = a[k * m + q];
        a[k * m + p] = c * kp - r * kq; a[k * m + q] = r * kp + c * kq;
      }
      for (let k = 0; k < m; k++) {
        const pk = a[p * m + k], qk = a[q * m + k];
        a[p * m + k] = c * pk - r * qk; a[q * m + k] = r * pk + c * qk;
      }
    }
    return Array.from({ length: m }, (_, k) => a[k * m + k]).sort((u, v) => u - v);
  }

  const looked = depth => { // layers whose gap is computed
    const found = new Set([0, 1]), points = Math.min(SHOWN, depth);
    for (let i = 1; i <= points; i++) found.add(Math.round(i * depth / points));
    return [...found];
  };

  /* One network: logs of norms and of largest entries by layer, gaps, and the size of signals. */
  function measure(s, network) {
    const { width: d, depth, samples: n } = s, kept = [], at = new Set(looked(depth));
    const homogeneous = s.norm === "none" && (s.activation === "linear" || s.activation === "relu");
    const result = { gradient: [], gap: [], signal: [], forward: [], backward: [] };
    let x = normals(d * n, s.seed, network, 0), scale = 0; // the batch is x times e^scale
    let others = training(s) ? null : normals(d * n * BATCHES, s.seed, network, OTHERS);
    const look = layer => {
      result.signal.push(logNorm(x) - 0.5 * Math.log(x.length) + scale);
      if (at.has(layer)) result.gap.push(gap(s, x));
    };
    look(0);
    for (let layer = 1; layer <= depth; layer++) {
      const w = weights(s, network, layer), z = times(w, x, d, d, n), high = peak(z);
      let scales = null;
      if (others) {
        const y = times(w, others, d, d, n * BATCHES), [means, variances] = averages(s, y);
        others = activate(s, y, others, layer);
        scales = variances.map(Math.sqrt);
        for (let i = 0; i < z.length; i++)
          z[i] = (z[i] - means[Math.floor(i / n)]) / scales[Math.floor(i / n)];
      } else if (s.norm === "layer") scales = normalise(z, n, d, true, true);
      else if (s.norm !== "none") scales = normalise(z, d, n, s.norm === "centred");
      kept.push([w, x, z, scales, scale]);
      x = activate(s, z, x, layer);
      result.forward.push(Math.log(Math.max(high, peak(x))) + scale);
      const size = peak(x);
      if (homogeneous && size > 0) { x = x.map(v => v / size); scale += Math.log(size); }
      look(layer);
      if (layer === 1 && plainLinear(s) && s.init === "orthogonal" && rank(s) > 1)
        result.flow = flow(spectrum(s, x), d, looked(depth).slice(1).map(l => l - 1));
    }
    let [g, logScale] = lossGradient(s, network, x, scale, result);
    for (let layer = depth; layer >= 1; layer--)
      [g, logScale] = back(s, layer, g, logScale, kept[layer - 1], result);
    return result;
  }

  /* Of the mean cross entropy with labels drawn at random. */
  function lossGradient(s, network, x, scale, result) {
    const { width: d, samples: n } = s, head = headOf(s, network), next = words(s.seed, network, LABELS);
    const z = times(head, x, CLASSES, d, n), factor = Math.exp(Math.min(scale, 600));
    for (let j = 0; j < n; j++) {
      let top = -Infinity, sum = 0;
      for (let c = 0; c < CLASSES; c++) top = Math.max(top, z[c * n + j] *= factor);
      for (let c = 0; c < CLASSES; c++) sum += z[c * n + j] = Math.exp(z[c * n + j] - top);
      for (let c = 0; c < CLASSES; c++) z[c * n + j] /= sum * n;
      z[(next() % CLASSES) * n + j] -= 1 / n;
    }
    const g = times(transposed(head, CLASSES, d), z, d, CLASSES, n);
    const m = times(g, transposed(x, d, n), d, n, d); // its parts foretell all layers, see predict
    let trace = 0, turning = 0, even = 0;
    for (let i = 0; i < d; i++) for (let j = 0; j < d; j++) {
      turning += (m[i * d + j] - m[j * d + i]) ** 2 / 4;
      even += (m[i * d + j] + m[j * d + i]) ** 2 / 4;
      if (i === j) trace += m[i * d + i];
    }
    result.turning = turning; result.even = even - trace ** 2 / d;
    return [g, 0];
  }

  function back(s, layer, g, logScale, [w, x, z, scales, scale], result) {
    const { width: d, samples: n } = s, slope = ACTIVATIONS[s.activation][1], alpha = gainOf(s, layer);
    const delta = g.map((v, i) => v * alpha * slope(alpha * z[i]));
    if (!training(s)) delta.forEach((v, i) => { delta[i] = v / scales[Math.floor(i / n)]; });
    else if (s.norm === "layer") backThroughNorm(delta, z, scales, n, d, true, true);
    else if (s.norm !== "none") backThroughNorm(delta, z, scales, d, n, s.norm === "centred");
    const dw = times(delta, transposed(x, d, n), d, n, d);
    result.gradient[layer - 1] = logNorm(dw) + logScale + scale;
    result.backward[layer - 1] = Math.max(Math.log(peak(dw)) + scale, Math.log(peak(delta))) + logScale;
    const before = times(transposed(w, d, d), delta, d, d, n).map((v, i) => v + s.shortcut * g[i]);
    const size = peak(before);
    if (!(size > 0) || (size > 1e-60 && size < 1e60)) return [before, logScale];
    return [before.map(v => v / size), logScale + Math.log(size)];
  }

  /* Mean of a function of a centred normal number, by the double-exponential rule. */
  const NODES = [];
  for (let u = -4.5; u < 3.7; u += 0.02) {
    const z = Math.exp(u - Math.exp(-u));
    NODES.push([z, 0.02 * z * (1 + Math.exp(-u)) * Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI)]);
  }
  function mean(f, root) {
    let sum = 0;
    for (const [z, weight] of NODES) sum += weight * (f(root * z) + f(-root * z));
    return sum;
  }

  /* Squares of what an activation returns and of its slope, for inputs of this size. */
  function averagesOf(s, layer, size) {
    const [f, slope] = ACTIVATIONS[s.activation], root = gainOf(s, layer) * size;
    const square = mean(v => f(v) ** 2, root), middle = odd(s) ? 0 : mean(f, root);
    return { square, variance: square - middle ** 2, slope: gainOf(s, layer) ** 2 * mean(v => slope(v) ** 2, root) };
  }

  /* Wide layers and large batches: growth towards the input relative to the last layer, signals. */
  function meanField(s) {
    const growth = [], slopes = [], signal = [0], inputs = [], through = s.shortcut ** 2;
    let logP = 0; // of the mean square, or variance, that comes in; it may leave double precision
    for (let layer = 1; layer <= s.depth; layer++) {
      const free = s.norm === "none", bent = s.activation === "tanh" || s.activation === "sin";
      const size = free && bent ? Math.max(Math.exp(logP / 2), 1e-50) : 1; // below, and else, all is linear
      const a = averagesOf(s, layer, size), more = free ? 0 : -logP, beyond = free ? logP - 2 * Math.log(size) : 0;
      growth.push(0.5 * Math.log(through + a.slope * Math.exp(more)));
      slopes.push(0.5 * Math.log(a.slope)); inputs.push(free ? logP / 2 : 0);
      const added = square => logP + Math.log(through + Math.exp(Math.log(square) + beyond - logP));
      signal.push(0.5 * added(a.square));
      logP = added(s.norm === "centred" ? a.variance : a.square);
    }
    const gradient = new Array(s.depth);
    for (let i = s.depth - 1, sum = 0; i >= 0; sum += growth[i--]) gradient[i] = sum + slopes[i] + inputs[i];
    const last = gradient[s.depth - 1];
    return { gradient: gradient.map(v => v - last), signal };
  }

  const gaussianRate = free => free < 3 ? NaN : 0.5 * Math.log((free - 1) / (free - 2));
  function reluRate(n) {
    if (n < 4) return NaN;
    const c = -1 / (n - 1), angle = Math.acos(c), both = (Math.PI - angle) / (2 * Math.PI);
    const product = (Math.sin(angle) + (Math.PI - angle) * c) / (2 * Math.PI);
    const through = (n - 1) / 2 - (n - 1) / n * (0.5 - both) - 0.5 + 1 / (2 * n) + (n - 1) / n * product;
    return 0.5 * Math.log(n * through / ((n - 1) * (n - 3) * (0.5 - product)));
  }
  function rateBounds(d, n) {
    const high = 0.5 * Math.log(n * (d - 2) / (d * (n - 2)));
    return n < 3 ? [NaN, NaN] : [high + 0.5 * Math.log(1 - 1 / n), high];
  }

  /* How fast the logarithms of a spectrum flow, scaled to mean one over all d directions. */
  function flowRate(logs, d) {
    const m = logs.length, v = scaled(logs, d), out = new Float64Array(m);
    let spread = (d - m) / d;
    for (let k = 0; k < m; k++) spread += (v[k] - 1) ** 2 / d;
    for (let k = 0; k < m; k++) for (let j = 0; j < k; j++) {
      const r = 1 / (v[k] - v[j]);
      out[k] += v[k] * r; out[j] -= v[j] * r;
    }
    for (let k = 0; k < m; k++) out[k] = 2 * (1 - v[k]) + 2 * spread * out[k] / Math.max(d - 1, 1);
    return out;
  }
  function scaled(logs, d) {
    const v = logs.map(Math.exp), sum = v.reduce((a, b) => a + b);
    return v.map(u => u * d / sum);
  }

  /* Gaps of a spectrum that flows, at these layers counted from its own. */
  function flow(values, d, layers) {
    const moved = (y, h, ...terms) => y.map((v, k) => v + h * terms.reduce((a, [c, r]) => a + c * r[k], 0));
    let y = Float64Array.from(values, Math.log), time = 0, h = 1e-6, k1 = flowRate(y, d), tries = 0;
    return layers.map(layer => { // Bogacki and Shampine's pair
      const end = layer / (d + 2);
      while (time < end && tries++ < 20000) {
        const step = Math.min(h, end - time), k2 = flowRate(moved(y, step, [0.5, k1]), d);
        const k3 = flowRate(moved(y, step, [0.75, k2]), d);
        const next = moved(y, step, [2 / 9, k1], [1 / 3, k2], [4 / 9, k3]), k4 = flowRate(next, d);
        const middle = y.reduce((a, v) => a + v, 0) / y.length, size = y.reduce((a, v) => a + (v - middle) ** 2, 0) / y.length;
        let wrong = 1e-9; // in units of what is allowed, a share of the spread that is left
        for (let k = 0; k < y.length; k++)
          wrong = Math.max(wrong, step / Math.min(1e-4, 1e-3 * Math.sqrt(size) + 1e-12) * Math.abs(-5 / 72 * k1[k] + k2[k] / 12 + k3[k] / 9 - k4[k] / 8));
        if (wrong <= 1) { time += step; y = next; k1 = k4; }
        if (!(wrong <= 1) || step === h) h = step * Math.min(4, Math.max(0.2, 0.9 / Math.cbrt(wrong) || 0.2));
      }
      const v = scaled(y, d);
      return tries > 20000 ? NaN : Math.log(d / v.length) - v.reduce((a, u) => a + Math.log(u), 0) / v.length;
    });
  }

  /* Size of signals under running averages, which begin at one and hold the unbiased variance. */
  function runningSignal(s) {
    const memory = (1 - MOMENTUM) ** STEPS, bessel = s.norm === "centred" ? s.samples / (s.samples - 1) : 1;
    let seen = 1, evaluated = 1;
    return [0].concat(Array.from({ length: s.depth }, (_, i) => {
      const size = Math.sqrt(evaluated / (memory + (1 - memory) * bessel * seen));
      seen = averagesOf(s, i + 1, 1).square;
      evaluated = averagesOf(s, i + 1, size).square;
      return 0.5 * Math.log(evaluated);
    }));
  }

  const median = values => {
    if (values.some(Number.isNaN)) return NaN;
    const v = [...values].sort((a, b) => a - b), k = v.length >> 1;
    return v.length % 2 ? v[k] : (v[k - 1] + v[k]) / 2;
  };
  const across = (nets, f) => f(nets[0]).map((_, i) => median(nets.map(net => f(net)[i])));

  /* What the book says of gradients: values by layer, lines around them, name and equation. */
  function gradientLaw(s, nets, field) {
    const d = s.width, m = rank(s), last = median(nets.map(net => net.gradient[s.depth - 1]));
    const line = rate => Array.from({ length: s.depth }, (_, i) => last + rate * (s.depth - 1 - i));
    const named = (law, values, more) => values.some(Number.isNaN) ? null : { law, values, ...more };
    if (!training(s)) return null;
    if (plainLinear(s) && s.init === "gaussian") return named("gaussian-rate", line(gaussianRate(m)));
    if (plainLinear(s) && m < d) {
      const around = rateBounds(d, m).map(line);
      return around[0].some(Number.isNaN) ? null : named("rate-bounds", line((1 / m - 1 / d) / 2), { around });
    }
    if (plainLinear(s)) return named("gradient-energy", Array.from({ length: s.depth }, (_, i) => median(nets.map(
      net => 0.5 * Math.log(net.turning + net.even * (d / (d + 2)) ** (s.depth - i))))));
    if (s.activation === "relu" && (s.norm === "batch" || (s.shortcut && s.norm !== "centred"))) return null;
    if (s.activation === "relu" && s.norm === "centred" && s.init === "gaussian" && !s.shortcut)
      return named("relu-rate", line(reluRate(s.samples)));
    const law = s.norm === "none" ? (s.shortcut ? "residual-recursion" : "edge-chi")
      : s.shortcut ? "residual-growth" : odd(s) ? "gradient-growth" : "gradient-growth-variance";
    return named(law, field.gradient.map(v => v + last));
  }

  function gapLaw(s, nets) {
    if (s.norm === "none" && s.activation === "linear" && s.init === "orthogonal" && !s.shortcut)
      return { law: "rotations", values: looked(s.depth).map(() => median(nets.map(net => net.gap[0]))) };
    return nets[0].flow ? { law: "spectrum-flow", values: [NaN, ...across(nets, net => net.flow)] } : null;
  }

  function signalLaw(s, field) {
    if (batchNorm(s) && s.statistics === "running")
      return odd(s) && !s.shortcut ? { law: "running-spread", values: runningSignal(s) } : null;
    if (!odd(s) && (s.shortcut || s.norm === "batch")) return null;
    return { law: s.norm === "none" ? "edge-length-map" : "lengths", values: field.signal };
  }

  function predict(s, nets) {
    const field = meanField(s);
    return { gradient: gradientLaw(s, nets, field), gap: gapLaw(s, nets), signal: signalLaw(s, field) };
  }

  return { measure, predict, looked, rank, training, batchNorm, median, gaussianRate, reluRate, rateBounds, flow, meanField, runningSignal, normals, weights };
}

const NETWORKS = 3;
const DEPTHS = [10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000];
const START = {
  width: 32, depth: 500, samples: 32, init: "gaussian", norm: "batch", activation: "linear", gain: 1,
  exponent: 0, shortcut: 0, statistics: "batch", format: "float32", seed: 0,
};
const CHOICES = { // name, question, options
  init: ["Weights", { orthogonal: "orthogonal", gaussian: "Gaussian" }],
  norm: ["Normalisation", { batch: "batch", centred: "batch, mean reduction", layer: "layer", none: "none" }],
  activation: ["Activation", { linear: "none", tanh: "tanh", sin: "sin", relu: "ReLU" }],
  statistics: ["Statistics of", { batch: "the batch", running: "running averages", recalibrated: "recalibration" }],
  format: ["Numbers", { float32: "float32", float16: "float16" }],
};
const SLIDERS = { // label, least, most, step
  depth: ["Depth", 0, DEPTHS.length - 1, 1], width: ["Width", 10, 64, 2], samples: ["Samples", 3, 128, 1],
  gain: ["Gain α", 0.1, 3, 0.1], exponent: ["Gain exponent e", 0, 1, 0.05], shortcut: ["Shortcut scale", 0, 1, 0.05],
};
const PRESETS = {
  "Explosion": {}, "Rotations save it": { init: "orthogonal" },
  "Too few samples": { init: "orthogonal", samples: 8 },
  "tanh": { init: "orthogonal", activation: "tanh" },
  "Shaped tanh": { init: "orthogonal", activation: "tanh", exponent: 0.4 },
  "No normalisation": { norm: "none" },
};
const LAWS = {
  "gaussian-rate": "the rate of Gaussian weights in wide layers", "rate-bounds": "the description of batches below full rank",
  "gradient-energy": "the law of the isometric phase", "relu-rate": "the rate of ReLU in wide layers",
  "gradient-growth": "the mean-field sum", "gradient-growth-variance": "the mean-field sum",
  "residual-growth": "the mean-field sum over shortcuts", "residual-recursion": "the mean-field recursion", "edge-chi": "mean field without normalisation",
  "spectrum-flow": "the flow of the spectrum", "rotations": "rotations, which change no singular value",
  "running-spread": "the recursion of running averages", "edge-length-map": "the length map", "lengths": "mean field",
};
const RANGE = { float16: [Math.log(65504), Math.log(2 ** -24)], float32: [128 * Math.LN2, -149 * Math.LN2] };
const QUESTIONS = [
  ["Is it the normalisation that makes gradients explode, or the weights?",
    "Keep batch normalisation and bring the gradient of the first layer within a factor of ten of the last.",
    {}, (s, f) => s.norm !== "batch" ? "That takes away the normalisation in question." : Math.abs(f.rise) < Math.log(10) && s.init === "orthogonal" && s.depth >= 200,
    "The weights: the same normalisation, but rotations, whose rows it has nothing to stretch once the batch is isometric."],
  ["How many samples does a network of 24 features need?",
    "Drag the samples up until the gradient stays within a factor of three.",
    { init: "orthogonal", width: 24, samples: 8, depth: 1000 }, (s, f) => s.width !== 24 || s.depth < 700 || s.init !== "orthogonal" ? "That is another network." : s.samples >= s.width && f.range < Math.log(3),
    "As many as it has features, 24. With one less the growth is slow, and does not end."],
  ["Which gain exponent keeps tanh bounded at all depths?",
    "Drag the exponent until less than three nats are left.",
    { init: "orthogonal", width: 16, samples: 16, activation: "tanh", depth: 1000 }, (s, f) => s.activation !== "tanh" || s.depth < 1000 ? "That is another network." : s.exponent > 0.25 && f.rise < 3,
    "Any above one quarter: each layer adds about ⅔ ℓ to the power −4e, and the sum over all layers is finite if 4e exceeds one."],
];

const mount = document.getElementById("explorer");
const K = kernel();
window.bnmlpExplorer = { kernel: K };
if (!mount) return;

let state = { ...START, ...fromAddress() }, nets = [], own = null, worker = null, stale = false; // numbers of another setting
const el = (tag, attributes = {}, ...children) => {
  const made = document.createElementNS(/^(svg|g|path|text|line|rect)$/.test(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  made.append(...children);
  return made;
};

function valid(s) {
  const out = { ...START };
  for (const name of Object.keys(START)) {
    const value = s[name], choice = CHOICES[name];
    if (choice) out[name] = Object.hasOwn(choice[1], value) ? value : START[name];
    else if (Number.isFinite(+value)) out[name] = +value;
  }
  out.depth = DEPTHS.reduce((a, b) => Math.abs(b - out.depth) < Math.abs(a - out.depth) ? b : a);
  for (const name of ["width", "gain", "exponent", "shortcut"]) {
    const [, least, most, step] = SLIDERS[name];
    out[name] = +(least + Math.round((Math.min(most, Math.max(least, out[name])) - least) / step) * step).toFixed(2);
  }
  out.samples = Math.round(Math.min(2 * out.width, Math.max(3, out.samples)));
  out.seed = Math.abs(Math.round(out.seed)) % 1e6;
  return out;
}

function fromAddress() {
  const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return valid({ ...START, ...found });
}

function toAddress() {
  const changed = Object.entries(state).filter(([name, value]) => value !== START[name]);
  history.replaceState(null, "", "#" + new URLSearchParams(changed));
}

/* Words and numbers. */
const nats = v => (Math.abs(v) < 0.095 ? v.toFixed(2) : v.toFixed(1)).replace("-", "−");
const superscript = n => [...String(n)].map(c => "⁰¹²³⁴⁵⁶⁷⁸⁹"["0123456789".indexOf(c)] || "⁻").join("");
function factor(v) {
  const size = Math.abs(v), power = Math.floor(size / Math.LN10);
  if (size < Math.log(10)) return Math.exp(size).toFixed(1);
  return power < 4 ? String(+Math.exp(size).toPrecision(2)) : `${Math.exp(size - power * Math.LN10).toFixed(0)}·10${superscript(power)}`;
}
function small(v, zeros = "0") {
  if (v === 0 || v >= 0.01) return zeros ? v.toFixed(2) : String(+v.toPrecision(2));
  return v.toExponential(0).replace(/e-(\d+)/, (_, p) => "·10" + superscript("-" + p)).replace(/^1·/, zeros && "1·");
}
const exact = v => Number.isFinite(v) ? String(+v.toPrecision(6)) : "";
const middle = f => f(nets[0]).map((_, i) => K.median(nets.map(net => f(net)[i])));

function facts() {
  const line = middle(net => net.gradient), last = line.length - 1, rises = nets.map(net => net.gradient[0] - net.gradient[last]);
  const [high, low] = RANGE[state.format], from = (f, test) => middle(f).map(test);
  return {
    line, rise: line[0] - line[last], least: Math.min(...rises), most: Math.max(...rises),
    range: Math.max(...line) - Math.min(...line), gaps: middle(net => net.gap), signals: middle(net => net.signal),
    over: from(net => net.backward, v => v > high).reverse(), under: from(net => net.backward, v => !(v > low)).reverse(),
    signalOver: from(net => net.forward, v => v > high), signalUnder: from(net => net.forward, v => !(v > low)),
  };
}

/* How the gradient of the first layer compares with that of the last, and what is between them. */
function outcome(f) {
  const L = state.depth, detail = ` (${nats(f.rise)} nats; the three networks ${nats(f.least)} to ${nats(f.most)})`;
  if (!Number.isFinite(f.rise)) return "The gradient is zero in some layers: nothing of it is left in double precision";
  if (f.range < 1) return `The gradient has about one size in all ${L} layers, within a factor of ${factor(f.range)}${detail}`;
  const between = f.range > 2 * Math.abs(f.rise) + 0.5 ? `, and in between it varies by a factor of ${factor(f.range)}` : "";
  if (Math.abs(f.rise) < 0.3) return `The gradient is about as large in the first layer as in the last${detail}${between}`;
  return `From the last layer back to the first the gradient ${f.rise < 0 ? "shrinks" : "grows"} by a factor of ${factor(f.rise)}${detail}${between}`;
}

function foretold(law) {
  if (!law) return "; for this the book has no prediction";
  const rise = values => nats(values[0] - values[values.length - 1]), ends = law.around && law.around.map(rise);
  return `; ${LAWS[law.law]} ${law.law === "lengths" ? "give" : "gives"} ${rise(law.values)}${ends ? ` (bounds: ${ends[0]} and ${ends[1]})` : ""}`;
}

function sentence(f, predicted) {
  const d = state.width, m = K.rank(state);
  const first = f.gaps[0], end = f.gaps[f.gaps.length - 1];
  const name = m < d ? `the batch has ${m} directions for ${d} features, so its isometry gap is infinite; that of the directions it has` : "the isometry gap";
  const gap = Number.isNaN(end) ? "; the batch loses directions, until double precision sees them no more" : `; ${name} goes from ${small(first)} to ${small(end)}`;
  const L = state.depth, where = (flags, words, back) => {
    const count = flags.filter(Boolean).length, first = flags.indexOf(true);
    return count ? [`${words} ${state.format} in ${count} of ${L} layers, first in layer ${back ? L - first : first + 1}.`] : [];
  };
  const wrong = [...where(f.signalOver, "Signals leave the range of"), ...where(f.signalUnder, "Signals are all zero in"),
    ...where(f.over, "On its way back the gradient leaves the range of", true), ...where(f.under, "On its way back the gradient is all zero in", true)];
  return [outcome(f) + foretold(predicted.gradient) + gap + ".", ...wrong].join(" ");
}

/* Charts. */
function ticks(low, high, most) {
  const rough = (high - low) / most || 1, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(k => k * ten >= rough) * ten, found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) found.push(+v.toPrecision(12));
  return found;
}

/* Of a logarithmic axis: whole powers of ten, or between them too where it is short. */
function powers(low, high) {
  if (high - low > 2.5) return ticks(low, high, 4).filter(v => v % 1 === 0);
  return from(Math.floor(low), 4).flatMap(k => [1, 2, 5].map(m => k + Math.log10(m))).filter(v => v > low && v < high);
}

function chart(place, title, series, { height, end, marks = [], power = false }) {
  const width = Math.max(place.clientWidth, 240), left = 44, top = 24, bottom = 34, right = 12;
  const values = series.flatMap(one => one.y).filter(Number.isFinite);
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) low = high = 0;
  const room = Math.max((high - low) * 0.06, power ? 0.2 : 0.5);
  low -= room; high += room;
  const X = v => left + v / end * (width - left - right), Y = v => top + (high - v) / (high - low) * (height - top - bottom);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title + ", by layer" });
  const text = (x, y, words, anchor = "middle", kind = "") => svg.append(el("text", { x, y, "text-anchor": anchor, class: kind }, words));
  for (const v of power ? powers(low, high) : ticks(low, high, 4)) {
    svg.append(el("line", { x1: left, x2: width - right, y1: Y(v), y2: Y(v), class: "grid" }));
    text(left - 6, Y(v) + 4, power ? small(10 ** v, "") : String(v).replace("-", "−"), "end");
  }
  for (const v of ticks(0, end, width < 420 ? 4 : 6)) text(X(v), height - bottom + 16, String(v));
  text(left - 40, 14, title, "start", "title");
  text((left + width - right) / 2, height - 3, "layer (the loss is at the right)");
  for (const [value, words] of marks) if (value > low && value < high) {
    svg.append(el("line", { x1: left, x2: width - right, y1: Y(value), y2: Y(value), class: "limit" }));
    text(width - right, Y(value) + (value > 0 ? -4 : 13), words, "end", "limit");
  }
  for (const { x, y, kind } of series) {
    const step = Math.max(1, Math.floor(x.length / 400));
    let path = "", pen = "M";
    x.forEach((v, i) => {
      if (i % step && i !== x.length - 1) return;
      if (Number.isFinite(y[i])) { path += `${pen}${X(v).toFixed(1)} ${Y(y[i]).toFixed(1)}`; pen = "L"; } else pen = "M";
    });
    svg.append(el("path", { d: path, class: kind }));
  }
  place.replaceChildren(svg);
}

const from = (start, count) => Array.from({ length: count }, (_, i) => start + i);
const log10 = v => v.map(u => u > 0 ? Math.log10(Math.max(u, 1e-12)) : NaN);

function draw() {
  if (!nets.length || stale) return;
  const f = facts(), predicted = parts.predicted, L = state.depth, at = K.looked(L), wide = mount.clientWidth > 560;
  const bundle = (x, get, law, change = v => v) => [
    ...nets.map(net => ({ x, y: change(get(net)), kind: "each" })),
    ...(law && law.around || []).map(y => ({ x, y: change(y), kind: "bound" })),
    { x, y: change(middle(get)), kind: "measured" }, ...(law ? [{ x, y: change(law.values), kind: "law" }] : []),
  ];
  const end = Math.max(L, own ? own.count : 0), mine = (y, change = v => v) => own && y.some(Number.isFinite) ? [{ x: own.layers, y: change(y), kind: "own" }] : [];
  const [over, under] = RANGE[state.format], marks = [[over, `${state.format} ends`], [under, `zero in ${state.format}`]];
  chart(parts.gradient, "log gradient norm (nats)", [...bundle(from(1, L), net => net.gradient, predicted.gradient), ...mine(own ? own.gradient : [])], { height: wide ? 240 : 190, end, marks });
  chart(parts.gap, K.rank(state) < state.width ? "gap of the directions there are (nats)" : "isometry gap (nats)",
    [...bundle(at, net => net.gap, predicted.gap, log10), ...mine(own ? own.gap : [], log10)], { height: 180, end, power: true });
  chart(parts.signal, "log size of the signal (nats)", [...bundle(from(0, L + 1), net => net.signal, predicted.signal), ...mine(own ? own.signal : [])], { height: 180, end, marks });
  parts.laws.replaceChildren(...["gradient", "gap", "signal"].flatMap(lawWords), ".");
  const partial = nets.length < NETWORKS;
  parts.charts.setAttribute("aria-busy", partial);
  mount.dataset.seed = state.seed;
  parts.hint.textContent = partial ? `Network ${nets.length} of ${NETWORKS} …` : "";
  if (!partial) tell(f, predicted);
}

function tell(f, predicted) {
  const words = sentence(f, predicted);
  if (parts.say.textContent !== words) parts.say.textContent = words;
  parts.questions.forEach(([answer, test, text]) => {
    if (!answer.dataset.asked) return;
    const found = test(state, f);
    answer.textContent = found === true ? "Yes. " + text : typeof found === "string" ? found : `Not yet: ${nats(f.rise)} nats.`;
  });
  fillTable(predicted);
  parts.code.textContent = python();
}

/* Name of a law, and the page's own link to its equation. */
function lawWords(name) {
  const law = parts.predicted[name], label = { gradient: "Predicted: gradient by ", gap: "; gap by ", signal: "; signal by " }[name];
  if (!law) return [label.replace(" by ", ": no prediction")];
  const source = document.querySelector(`#explorer-laws a[href$="#equation-${law.law}"]`);
  return [label + LAWS[law.law], ...(source ? [" ", el("a", { href: source.getAttribute("href") }, source.textContent.trim())] : [])];
}

function columns(predicted) {
  const L = state.depth, at = K.looked(L), gradient = middle(net => net.gradient), signal = middle(net => net.signal), gaps = middle(net => net.gap);
  const of = (law, i) => law && i >= 0 ? law.values[i] : NaN;
  return from(0, L + 1).map(layer => [layer, gradient[layer - 1], of(predicted.gradient, layer - 1), gaps[at.indexOf(layer)],
    of(predicted.gap, at.indexOf(layer)), signal[layer], of(predicted.signal, layer)]);
}
const HEADS = ["layer", "log gradient norm", "predicted", "isometry gap", "predicted", "log size of signal", "predicted"];

function fillTable(predicted) {
  const rows = columns(predicted), every = Math.max(1, Math.ceil(state.depth / 20));
  parts.rows = rows;
  const row = cells => el("tr", {}, el("th", { scope: "row" }, String(cells[0])), ...cells.slice(1).map(v => el("td", {}, exact(v))));
  parts.table.replaceChildren(el("thead", {}, el("tr", {}, ...HEADS.map(h => el("th", { scope: "col" }, h)))),
    el("tbody", {}, ...rows.filter(([layer]) => layer < 2 || layer % every === 0 || layer === state.depth).map(row)));
}

function csv() {
  const names = ["layer", "log_gradient_norm", "log_gradient_norm_predicted", "isometry_gap", "isometry_gap_predicted", "log_signal", "log_signal_predicted"];
  const text = [names, ...parts.rows.map(row => row.map(exact))].map(row => row.join(",")).join("\n") + "\n";
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: "explorer.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/* The same in Python, with random numbers of its own. */
function python() {
  const s = state, e = s.exponent ? ` * layer ** -${s.exponent}` : "", batch = `x, y = torch.randn(${s.samples}, ${s.width}), torch.randint(10, (${s.samples},))`;
  const name = { linear: "identity" }[s.activation] || s.activation, head = "import torch\n\nimport bnmlp\n\ntorch.set_default_dtype(torch.float64)\n";
  if (s.shortcut) {
    const norm = { none: "w @ x", layer: "bnmlp.layer_norm(w @ x, eps=0)" }[s.norm] || `bnmlp.batch_norm(w @ x, center=${s.norm === "centred" ? "True" : "False"}, eps=0)`;
    const w = s.init === "orthogonal" ? `bnmlp.haar_orthogonal(${s.depth}, d=${s.width})` : `torch.randn(${s.depth}, ${s.width}, ${s.width}) / ${s.width} ** 0.5`;
    return `${head}weights = (${w}).requires_grad_()\nx, y = torch.randn(${s.width}, ${s.samples}), torch.randint(10, (${s.samples},))\n` +
      `for layer, w in enumerate(weights, 1):\n    x = ${s.shortcut} * x + bnmlp.ACTIVATIONS["${name}"](${s.gain}${e} * ${norm})\n` +
      `logits = x.mT @ torch.randn(${s.width}, 10) * (2 / ${s.width + 10}) ** 0.5\nloss = torch.nn.functional.cross_entropy(logits, y)\n` +
      "log_norms = torch.autograd.grad(loss, weights)[0].norm(dim=(1, 2)).log()\nprint(log_norms[0] - log_norms[-1])";
  }
  const norm = { centred: 'norm="batch"', batch: 'norm="batch", center=False' }[s.norm] || `norm="${s.norm}"`;
  const averages = K.training(s) ? "" : s.statistics === "running"
    ? `for step in range(40):\n    model(torch.randn(${s.samples}, ${s.width}))\nmodel.eval()\n` : `bnmlp.recalibrate(model, torch.randn(${4 * s.samples}, ${s.width}))\nmodel.eval()\n`;
  return `${head}${batch}\nmodel = bnmlp.BNMLP(${s.width}, ${s.width}, ${s.depth}, 10, init="${s.init}", ${norm}, activation="${name}",\n` +
    `                    gain=${s.gain}, gain_exponent=${s.exponent}, eps=0, seed=${s.seed}, dtype=torch.float64)\n${averages}` +
    "log_norms = bnmlp.gradient_norms(model, x, y, log=True)[:-1]  # of layers 1, 2, ...\nprint(log_norms[0] - log_norms[-1])\n" +
    `gaps = bnmlp.isometry_gap(model.representations(x)["activation"]${K.rank(s) < s.width ? ".mT" : ""})`;
}

/* Computing: in a worker, network after network, so that the newest setting is always next. */
function compute(networks = NETWORKS) {
  if (worker) worker.terminate();
  stale = true;
  const next = (data, got) => { got.push(data); nets = got; stale = false; parts.predicted = K.predict(state, nets); draw(); };
  const source = `const K = (${kernel})(); onmessage = e => { for (let r = 0; r < e.data[1]; r++) postMessage(K.measure(e.data[0], r)); };`;
  parts.hint.textContent = "Computing …";
  parts.charts.setAttribute("aria-busy", true);
  const got = [];
  try {
    const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    worker = new Worker(address);
    worker.onmessage = e => next(e.data, got);
    worker.postMessage([state, networks]);
    setTimeout(() => URL.revokeObjectURL(address), 2000);
  } catch (error) { // no workers here
    worker = null;
    for (let r = 0; r < networks; r++) next(K.measure(state, r), got);
  }
}

function set(changes, dragging = false) {
  const ratio = state.samples / state.width;
  if ("width" in changes && !("samples" in changes)) changes.samples = Math.round(changes.width * ratio);
  state = valid({ ...state, ...changes });
  show();
  toAddress();
  compute(dragging ? 1 : NETWORKS);
}

/* Controls. */
const parts = { inputs: {} };
const shown = {
  samples: v => `${v}${v === state.width ? " = width" : ""}`, exponent: v => `${v}${v === 0.25 ? " = ¼" : ""}`,
};

function show() {
  for (const [name, { input, output, tick }] of Object.entries(parts.inputs)) {
    if (name === "samples") { input.max = 2 * state.width; tick.value = state.width; }
    input.value = name === "depth" ? DEPTHS.indexOf(state.depth) : state[name];
    output.textContent = (shown[name] || String)(state[name]);
    input.setAttribute("aria-valuetext", output.textContent);
  }
  for (const radio of mount.querySelectorAll("input[type=radio]")) {
    radio.checked = state[radio.name] === radio.value;
    if (radio.name === "statistics") radio.disabled = !K.batchNorm(state);
  }
}

function slider(name) {
  const [label, min, max, step] = SLIDERS[name], id = "explorer-" + name, mark = { exponent: 0.25, samples: 32 }[name], tick = el("option", { value: mark || 0 });
  const value = input => name === "depth" ? DEPTHS[input.value] : +input.value;
  const input = el("input", { type: "range", id, min, max, step, list: mark && id + "-tick",
    oninput: () => set({ [name]: value(input) }, true), onchange: () => set({ [name]: value(input) }) });
  const output = el("output", { for: id });
  parts.inputs[name] = { input, output, tick };
  return el("div", { class: "slider" }, el("label", { for: id }, label), output, input, ...(mark ? [el("datalist", { id: id + "-tick" }, tick)] : []));
}

function radios(name) {
  const [label, options] = CHOICES[name];
  return el("fieldset", {}, el("legend", {}, label), ...Object.entries(options).map(([value, words]) =>
    el("label", {}, el("input", { type: "radio", name, value, onchange: () => set({ [name]: value }) }), words)));
}

const button = (words, onclick, more = {}) => el("button", { type: "button", onclick, ...more }, words);

function question([ask, task, start, test, text]) {
  const answer = el("p", { "aria-live": "polite" });
  parts.questions.push([answer, test, text]);
  const begin = () => { answer.dataset.asked = 1; set({ ...START, seed: state.seed, ...start }); };
  return el("li", {}, el("strong", {}, ask), " " + task + " ", button("Begin", begin, { "aria-label": "Begin: " + ask }), answer);
}

/* The JSON of `bnmlp measure`. */
async function take(file) {
  try {
    const report = JSON.parse(await file.text());
    if (!String(report.schema).startsWith("bnmlp.report/")) throw new Error("it is no report of bnmlp measure --json");
    const rows = report.layers.filter(row => row.layer !== null && !row.replica), number = v => v === null || v === undefined ? NaN : v;
    if (!rows.length) throw new Error("it has no layers");
    own = { layers: rows.map(row => row.layer), count: rows[rows.length - 1].layer, gradient: rows.map(row => Math.log(number(row.weight_gradient_norm))),
      gap: rows.map(row => number(row.isometry_gap)), signal: rows.map(row => 0.5 * Math.log(number(row.mean_square))) };
    const rate = report.rates && report.rates.weights, said = rate ? `, its gradient grows by ${nats(rate.value)} nats per layer towards the input` : "";
    parts.own.textContent = `${file.name}: ${rows.length} layers${said}; found: ${report.verdict}.${own.gap.some(Number.isFinite) ? "" : " It has no isometry gaps: those need the option --spectra, and at least as many samples as features."}`;
  } catch (error) { own = null; parts.own.textContent = `${file.name} was not read: ${error.message}.`; }
  draw();
}

function build() {
  parts.questions = [];
  const box = name => parts[name] = el("div", { class: "chart " + name });
  const copy = e => navigator.clipboard.writeText(location.href).then(() => { e.target.textContent = "Copied"; }, () => { location.hash = location.hash; });
  const file = el("input", { type: "file", accept: ".json,application/json", id: "explorer-file", onchange: () => file.files[0] && take(file.files[0]) });
  parts.say = el("p", { class: "say", role: "status", "aria-live": "polite" });
  parts.hint = el("p", { class: "hint" });
  parts.laws = el("p", { class: "laws" });
  parts.table = el("table", {});
  parts.code = el("code", {});
  parts.own = el("p", { role: "status", "aria-live": "polite" });
  parts.charts = el("div", { class: "charts" }, box("gradient"), parts.say, el("div", { class: "pair" }, box("gap"), box("signal")));
  const preset = ([name, changes]) => button(name, () => set({ ...START, seed: state.seed, ...changes }));
  mount.replaceChildren(
    el("div", { class: "buttons", role: "group", "aria-label": "Settings to begin with" }, ...Object.entries(PRESETS).map(preset)),
    parts.charts, parts.hint,
    el("p", { class: "key" }, el("span", { class: "measured" }, "median of three networks"), el("span", { class: "each" }, "each"), el("span", { class: "law" }, "predicted"), el("span", { class: "bound" }, "its bounds"), el("span", { class: "own" }, "your own")),
    parts.laws,
    el("form", { class: "controls", onsubmit: e => e.preventDefault() }, ...Object.keys(SLIDERS).map(slider), ...Object.keys(CHOICES).map(radios)),
    el("div", { class: "buttons" }, button("New random numbers", () => set({ seed: state.seed + 1 })), button("Copy the link to this setting", copy), button("Values as CSV", csv)),
    el("details", {}, el("summary", {}, "Values as a table"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Values" }, parts.table)),
    el("details", {}, el("summary", {}, "The same in Python"), el("pre", { tabindex: 0 }, parts.code)),
    el("div", { class: "drop", ondragover: e => e.preventDefault(), ondrop: e => { e.preventDefault(); e.dataTransfer.files[0] && take(e.dataTransfer.files[0]); } },
      el("label", { for: "explorer-file" }, "Your own network: drop the JSON of bnmlp measure here, or choose it. It stays in your browser. "), file, parts.own),
    el("h2", {}, "Three questions"), el("ol", {}, ...QUESTIONS.map(question)));
  mount.hidden = false;
  const still = document.getElementById("explorer-still"), place = document.getElementById("explorer-stills");
  if (still && place) place.append(still); else if (still) still.hidden = true;
}

build();
show();
compute();
addEventListener("hashchange", () => { state = fromAddress(); show(); compute(); });
new ResizeObserver(() => draw()).observe(mount);
})();
