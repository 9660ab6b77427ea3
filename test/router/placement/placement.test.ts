import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { type Info, InfoSchema, LoadSchema, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { ServiceError } from "../../../services/common/errors.ts";
import { policyOf } from "../../../services/router/placement/policies.ts";
import type { Condition, Member, Pool } from "../../../services/router/pool/pool.ts";
import { Avoid, createPlacer, type Placer } from "../../../services/router/placement/placement.ts";
import { createWaitRoom } from "../../../services/router/relay/wait-room.ts";

const TINY = { model: "tiny", tokens: 10, strict: false };

interface Facts {
  readonly id: string;
  readonly condition?: Condition;
  readonly freeSlots?: number;
  readonly legs?: number;
  readonly info?: Partial<Info>;
}

function member(role: Role, { id, condition = "serving", freeSlots = 4, legs = 0, info = {} }: Facts): Member {
  return {
    info: create(InfoSchema, { instanceId: id, role, model: "tiny", connector: "p2p-nccl", ...info } as Info),
    load: create(LoadSchema, { state: State.SERVING, freeSlots }),
    loadAtMs: 1,
    condition,
    eligible: condition === "serving",
    reason: "",
    legs,
    legsTotal: 0n,
    legsAtLoad: legs,
    placedTokens: 0,
    tokensPerMs: 0,
    suspicion: 0,
  } as Member;
}

function poolOf(prefill: readonly Facts[], decode: readonly Facts[]): Pool {
  const snapshot = {
    prefill: prefill.map((facts) => member(Role.PREFILL, facts)),
    decode: decode.map((facts) => member(Role.DECODE, facts)),
    models: new Map(),
    brokenPairs: new Set<string>(),
  };
  return { snapshot } as unknown as Pool;
}

function placerOf(prefill: readonly Facts[], decode: readonly Facts[]): Placer {
  return createPlacer(poolOf(prefill, decode), { prefill: policyOf("round-robin"), decode: policyOf("round-robin") });
}

const ids = (placer: Placer, count: number, avoid = new Avoid()): string =>
  Array.from({ length: count }, () => {
    const { prefill, decode } = placer.place(TINY, avoid);
    return `${prefill!.info.instanceId}${decode?.info.instanceId ?? ""}`;
  }).join(" ");

describe("placement", () => {
  it("lets each policy choose on its own", () => {
    assert.equal(ids(placerOf([{ id: "a" }, { id: "b" }], [{ id: "x" }, { id: "y" }, { id: "z" }]), 4), "ax by az bx");
  });

  it("leaves decode open where the connector picks it after prefill", () => {
    const nixl = { info: { connector: "nixl" } };
    const placer = placerOf([{ id: "a", ...nixl }], [{ id: "x", ...nixl }]);
    const { prefill, decode, traits } = placer.place(TINY, new Avoid());
    assert.equal(decode, undefined);
    assert.equal(traits.decodeFirst, false);
    assert.equal(placer.placeDecode(prefill!, new Avoid()).info.instanceId, "x");
  });

  it("pairs only what fits", () => {
    const [one, two] = [{ info: { blockSize: 16 } }, { info: { blockSize: 32 } }];
    const placer = placerOf(
      [
        { id: "a", ...one },
        { id: "b", ...two },
        { id: "c", info: { blockSize: 64 } },
      ],
      [
        { id: "x", ...one },
        { id: "y", ...two },
      ],
    );
    assert.equal(ids(placer, 4), "ax by ax by");
  });

  it("prefers instances with a free slot, by figures that may be stale, and asks the others all the same", () => {
    assert.equal(ids(placerOf([{ id: "a" }], [{ id: "x", freeSlots: 0 }, { id: "y" }]), 2), "ay ay");
    assert.equal(ids(placerOf([{ id: "a" }], [{ id: "x", freeSlots: 0 }]), 1), "ax");
  });

  it("gives one that failed a second chance only where there is no other", () => {
    const pool = poolOf([{ id: "a" }], [{ id: "x" }, { id: "y" }]);
    const placer = createPlacer(pool, { prefill: policyOf("round-robin"), decode: policyOf("round-robin") });
    const avoid = new Avoid();
    avoid.shun(pool.snapshot.decode[0]!, "failed");
    avoid.shun(pool.snapshot.prefill[0]!, "failed");
    assert.equal(ids(placer, 2, avoid), "ay ay");
  });

  it("leaves a busy one alone until it has news of a free slot", () => {
    const before = member(Role.DECODE, { id: "x", legs: 3 });
    const avoid = new Avoid();
    avoid.busy(before);
    assert.equal(avoid.isBusy(before), true);
    assert.equal(avoid.isBusy({ ...before, load: create(LoadSchema, { freeSlots: 0 }) }), true);
    assert.equal(avoid.isBusy({ ...before, legs: 2 }), false, "a leg of ours ended there");
    avoid.busy(before);
    assert.equal(avoid.isBusy({ ...before, load: create(LoadSchema, { freeSlots: 1 }) }), false, "it says so itself");
  });

  it("pays no prefill while all its partners are busy", () => {
    const nixl = { info: { connector: "nixl" } };
    const pool = poolOf([{ id: "a", ...nixl }], [{ id: "x", ...nixl }]);
    const placer = createPlacer(pool, { prefill: policyOf("round-robin"), decode: policyOf("round-robin") });
    const avoid = new Avoid();
    avoid.busy(pool.snapshot.decode[0]!);
    assert.throws(() => placer.place(TINY, avoid), { code: "instance_busy", message: /The decode instance is busy/ });
  });

  const lacks: [string, readonly Facts[], readonly Facts[], string][] = [
    [
      "knows nobody",
      [],
      [],
      'No prefill instance is ready for model "tiny" (none is known), and no decode instance is ready for model "tiny" (none is known).',
    ],
    [
      "has no decode",
      [{ id: "a" }],
      [
        { id: "x", condition: "draining" },
        { id: "y", condition: "starting" },
      ],
      'No decode instance is ready for model "tiny" (2 known: 1 draining, 1 starting).',
    ],
    [
      "has another model only",
      [{ id: "a" }],
      [{ id: "x", info: { model: "big" } }],
      'No decode instance is ready for model "tiny" (none is known).',
    ],
    [
      "has none that fit",
      [{ id: "a", info: { dtype: "float16" } }],
      [{ id: "x", info: { dtype: "bfloat16" } }],
      'No prefill and decode instance of model "tiny" fit each other: they differ in the number type: float16 on prefill, bfloat16 on decode.',
    ],
    [
      "has a connector of a later version",
      [{ id: "a", info: { connector: "warp" } }],
      [{ id: "x", info: { connector: "warp" } }],
      'No prefill and decode instance of model "tiny" fit each other: this router doesn\'t know the KV connector warp.',
    ],
  ];
  for (const [name, prefill, decode, message] of lacks) {
    it(`says what is missing where it ${name}`, () => {
      assert.throws(() => placerOf(prefill, decode).place(TINY, new Avoid()), {
        code: "no_instance",
        message: `${message} Try again in a second.`,
        retryAfterS: 1,
      });
    });
  }
});

describe("the wait for a busy instance", () => {
  /** A pool with so many free places that a test can change. */
  function roomOf(free: { count: number }) {
    const listeners = new Set<() => void>();
    const pool = {
      onChange: (listener: () => void) => (listeners.add(listener), () => listeners.delete(listener)),
    } as unknown as Pool;
    const room = createWaitRoom(pool);
    const log: string[] = [];
    const looks = { count: 0 };
    const pick = (): number => {
      looks.count += 1;
      if (free.count === 0) throw new ServiceError("instance_busy", "Busy.");
      return (free.count -= 1);
    };
    const enter = (name: string) =>
      room.find(
        pick,
        () => log.push(name),
        (error) => log.push(`${name}:${error.code}`),
      );
    return { enter, log, looks, listeners, change: () => [...listeners].forEach((listener) => listener()) };
  }

  it("is none where there is room", () => {
    const { enter, log, listeners } = roomOf({ count: 1 });
    assert.equal(enter("a"), undefined);
    assert.deepEqual(log, ["a"]);
    assert.equal(listeners.size, 0);
  });

  it("lets in first who came first, as many as there is room for", () => {
    const free = { count: 0 };
    const { enter, log, listeners, change } = roomOf(free);
    for (const name of "abcd") enter(name);
    free.count = 2;
    change();
    assert.deepEqual(log, ["a", "b"]);
    free.count = 9;
    change();
    assert.deepEqual(log, ["a", "b", "c", "d"]);
    assert.equal(listeners.size, 0);
  });

  it("forgets who leaves", () => {
    const free = { count: 0 };
    const { enter, log, listeners, change } = roomOf(free);
    const first = enter("a")!;
    enter("b");
    first.end();
    free.count = 9;
    change();
    assert.deepEqual(log, ["b"]);
    assert.equal(listeners.size, 0);
  });

  it("costs little while there is no room, however many wait", () => {
    const { enter, looks, change } = roomOf({ count: 0 });
    for (let count = 0; count < 1_000; count += 1) enter("a");
    looks.count = 0;
    change();
    assert.ok(looks.count < 10, `${looks.count} looks`);
  });

  it("ends with an error that waiting doesn't cure", () => {
    const free = { count: 0 };
    const { log, change, enter } = roomOf(free);
    enter("a");
    Object.defineProperty(free, "count", {
      get: () => {
        throw new ServiceError("no_instance", "Gone.");
      },
    });
    change();
    assert.deepEqual(log, ["a:no_instance"]);
  });
});
