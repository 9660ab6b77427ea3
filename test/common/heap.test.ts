import assert from "node:assert/strict";
import { seededRandom } from "../../clients/loadgen/arrivals.ts";
import { Heap } from "../../services/common/heap.ts";

describe("the heap", () => {
  it("gives its items in the order of a sorted list, while others are added and removed", () => {
    const random = seededRandom(7);
    const heap = new Heap<{ readonly key: number }>((a, b) => a.key < b.key);
    let model: { readonly key: number }[] = [];
    for (let count = 0; count < 5_000; count += 1) {
      const roll = random();
      if (roll < 0.5 || model.length === 0) {
        const item = { key: Math.floor(random() * 1e9) };
        heap.push(item);
        model.push(item);
      } else {
        model.sort((a, b) => a.key - b.key);
        const victim = roll < 0.75 ? model[0]! : model[Math.floor(random() * model.length)]!;
        if (roll < 0.75) assert.equal(heap.first, victim);
        assert.equal(heap.remove(victim), true);
        model = model.filter((item) => item !== victim);
      }
      assert.equal(heap.size, model.length);
    }
    assert.equal(heap.remove({ key: 1 }), false);
  });

  it("costs the logarithm of its size", () => {
    let looks = 0;
    const heap = new Heap<{ readonly key: number }>((a, b) => (looks++, a.key < b.key));
    const random = seededRandom(3);
    const items = Array.from({ length: 65_536 }, () => ({ key: random() }));
    for (const item of items) heap.push(item);
    looks = 0;
    for (let index = 0; index < 1_000; index += 1) heap.remove(items[index * 60]!);
    assert.ok(looks / 1_000 < 40, `${looks / 1_000} comparisons for one that leaves`);
  });
});
