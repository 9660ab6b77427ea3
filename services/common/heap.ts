// A binary heap from which any item can leave, not only the first: each operation costs O(log n).
export class Heap<T extends object> {
  readonly #items: T[] = [];
  readonly #at = new Map<T, number>();
  readonly #before: (a: T, b: T) => boolean;

  /** @param before Whether `a` comes out before `b`: a strict order. */
  constructor(before: (a: T, b: T) => boolean) {
    this.#before = before;
  }

  get size(): number {
    return this.#items.length;
  }

  get first(): T | undefined {
    return this.#items[0];
  }

  push(item: T): void {
    this.#items.push(item);
    this.#rise(item, this.#items.length - 1);
  }

  /** False if the item is not in the heap. */
  remove(item: T): boolean {
    const index = this.#at.get(item);
    if (index === undefined) return false;
    this.#at.delete(item);
    const last = this.#items.pop()!;
    if (last === item) return true;
    // The last item replaces it and sifts to its own position from there.
    const parent = this.#items[(index - 1) >> 1];
    if (index > 0 && this.#before(last, parent!)) this.#rise(last, index);
    else this.#sink(last, index);
    return true;
  }

  #rise(item: T, from: number): void {
    let index = from;
    while (index > 0) {
      const parent = this.#items[(index - 1) >> 1]!;
      if (!this.#before(item, parent)) break;
      this.#put(parent, index);
      index = (index - 1) >> 1;
    }
    this.#put(item, index);
  }

  #sink(item: T, from: number): void {
    let index = from;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= this.#items.length) break;
      const right = this.#items[child + 1];
      if (right !== undefined && this.#before(right, this.#items[child]!)) child += 1;
      if (!this.#before(this.#items[child]!, item)) break;
      this.#put(this.#items[child]!, index);
      index = child;
    }
    this.#put(item, index);
  }

  #put(item: T, index: number): void {
    this.#items[index] = item;
    this.#at.set(item, index);
  }
}
