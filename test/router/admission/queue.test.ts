import assert from "node:assert/strict";
import { FairQueue, type Waiter } from "../../../services/router/admission/queue.ts";

interface Named extends Waiter {
  readonly name: string;
}

const waiter = (name: string, o: Partial<Waiter> = {}): Named => ({
  name,
  model: "m",
  tenant: "",
  priority: 0,
  legs: 1,
  ...o,
});

/** Names in the order in which they would be let in. */
function drained(queue: FairQueue<Named>): string {
  const names: string[] = [];
  for (let first = queue.first("m"); first !== undefined; first = queue.first("m")) {
    names.push(first.name);
    queue.remove(first, true);
  }
  return names.join(" ");
}

describe("the waiting queue", () => {
  it("is first come, first served among equals", () => {
    const queue = new FairQueue<Named>();
    for (const name of ["a", "b", "c"]) queue.push(waiter(name));
    assert.equal(drained(queue), "a b c");
  });

  it("puts a lower priority first, for all tenants", () => {
    const queue = new FairQueue<Named>();
    queue.push(waiter("late", { priority: 5 }));
    queue.push(waiter("normal"));
    queue.push(waiter("soon", { priority: -1, tenant: "x" }));
    assert.equal(drained(queue), "soon normal late");
  });

  it("lets tenants take turns, however many requests one brings", () => {
    const queue = new FairQueue<Named>();
    for (let count = 0; count < 4; count += 1) queue.push(waiter(`a${count}`, { tenant: "a" }));
    for (let count = 0; count < 2; count += 1) queue.push(waiter(`b${count}`, { tenant: "b" }));
    assert.equal(drained(queue), "a0 b0 a1 b1 a2 a3");
  });

  it("counts a turn by its legs", () => {
    const queue = new FairQueue<Named>();
    queue.push(waiter("a0", { tenant: "a", legs: 3 }));
    queue.push(waiter("a1", { tenant: "a", legs: 3 }));
    for (let count = 0; count < 4; count += 1) queue.push(waiter(`b${count}`, { tenant: "b" }));
    assert.equal(drained(queue), "a0 b0 b1 b2 a1 b3");
  });

  it("gives a later tenant no credit for its absence", () => {
    const queue = new FairQueue<Named>();
    for (let count = 0; count < 6; count += 1) queue.push(waiter(`a${count}`, { tenant: "a" }));
    for (let count = 0; count < 3; count += 1) queue.remove(queue.first("m")!, true);
    for (let count = 0; count < 3; count += 1) queue.push(waiter(`b${count}`, { tenant: "b" }));
    assert.equal(drained(queue), "b0 a3 b1 a4 b2 a5");
  });

  it("displaces the last request of the tenant with the most for one with few", () => {
    const queue = new FairQueue<Named>();
    for (let count = 0; count < 4; count += 1) queue.push(waiter(`a${count}`, { tenant: "a" }));
    assert.equal(queue.displacedBy(waiter("b", { tenant: "b" }))?.name, "a3");
    assert.equal(queue.displacedBy(waiter("a", { tenant: "a" })), undefined);
    assert.equal(queue.displacedBy(waiter("a", { tenant: "a", priority: -1 }))?.name, "a3");
  });

  it("forgets models and tenants without waiting requests", () => {
    const queue = new FairQueue<Named>();
    const many = Array.from({ length: 100 }, (_, index) =>
      waiter(`${index}`, { tenant: `t${index}`, model: `m${index % 3}` }),
    );
    for (const one of many) queue.push(one);
    assert.equal(queue.models().length, 3);
    for (const one of many) queue.remove(one, false);
    assert.equal(queue.size, 0);
    assert.deepEqual(queue.models(), []);
    assert.equal(queue.displacedBy(waiter("a")), undefined);
  });
});
