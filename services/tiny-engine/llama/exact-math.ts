// exp, ln, sin and cos from nothing but + - * / and Math.round, which IEEE 754 fixes to the last bit. V8's own differ
// between versions and builds, and one bit is enough to flip a near-tie between two tokens.
// All take and return doubles and are within a few ulp over the stated ranges.

const LN2_HIGH = 0.6931471803691238;
const LN2_LOW = 1.9082149292705877e-10;
const TWO_PI_HIGH = 6.283185243606567;
const TWO_PI_LOW = 6.357301884918343e-8;

/** @param x From -700 to 700. */
export function exp(x: number): number {
  const n = Math.round(x / (LN2_HIGH + LN2_LOW));
  const r = x - n * LN2_HIGH - n * LN2_LOW;
  let term = 1;
  let sum = 1;
  for (let k = 1; k <= 20; k++) {
    term = (term * r) / k;
    sum += term;
  }
  return scale(sum, n);
}

/** @param x Above 0, normal. */
export function ln(x: number): number {
  let n = 0;
  let m = x;
  while (m > 1.4142135623730951) {
    m /= 2;
    n++;
  }
  while (m < 0.7071067811865476) {
    m *= 2;
    n--;
  }
  // ln m = 2 artanh((m - 1) / (m + 1))
  const z = (m - 1) / (m + 1);
  const square = z * z;
  let power = z;
  let sum = 0;
  for (let k = 1; k <= 31; k += 2) {
    sum += power / k;
    power *= square;
  }
  return n * LN2_HIGH + (n * LN2_LOW + 2 * sum);
}

/** @param x From -100,000 to 100,000 (rad). */
export function sin(x: number): number {
  return series(reduce(x), 1);
}

/** @param x From -100,000 to 100,000 (rad). */
export function cos(x: number): number {
  return series(reduce(x), 0);
}

function reduce(x: number): number {
  const turns = Math.round(x / (TWO_PI_HIGH + TWO_PI_LOW));
  return x - turns * TWO_PI_HIGH - turns * TWO_PI_LOW;
}

/** Taylor series of cos (from power 0) or sin (from power 1) for |x| <= pi. */
function series(x: number, from: 0 | 1): number {
  const square = x * x;
  let term = from === 0 ? 1 : x;
  let sum = 0;
  for (let k = from; k <= 30 + from; k += 2) {
    sum += term;
    term = (-term * square) / ((k + 1) * (k + 2));
  }
  return sum;
}

/** x * 2^n, exact if the result is normal. */
function scale(x: number, n: number): number {
  let result = x;
  for (let left = n; left > 0; left--) result *= 2;
  for (let left = n; left < 0; left++) result /= 2;
  return result;
}
