import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { LoadSchema, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { Picker } from "../../../services/router/placement/policies.ts";
import { createPlacer, Exclusions, type Placer } from "../../../services/router/placement/placement.ts";
import { known, type KnownInit, viewOf } from "../support/fleet.ts";

const TINY = { model: "tiny", tokens: 10, strict: false };
const policies = () => ({ prefill: new Picker(() => "round-robin"), decode: new Picker(() => "round-robin") });

function placerOf(prefill: readonly KnownInit[], decode: readonly KnownInit[]): Placer {
  return createPlacer({ view: viewOf(prefill, decode) }, policies());
}

const ids = (placer: Placer, count: number, exclusions = new Exclusions()): string =>
  Array.from({ length: count }, () => {
    const { prefill, decode } = placer.place(TINY, exclusions);
    return `${prefill!.info.instanceId}${decode?.info.instanceId ?? ""}`;
  }).join(" ");

describe("placement", () => {
  it("lets each policy choose independently", () => {
    assert.equal(ids(placerOf([{ id: "a" }, { id: "b" }], [{ id: "x" }, { id: "y" }, { id: "z" }]), 4), "ax by az bx");
  });

  it("leaves decode open where the connector picks it after prefill", () => {
    const nixl = { info: { connector: "nixl" } };
    const placer = placerOf([{ id: "a", ...nixl }], [{ id: "x", ...nixl }]);
    const { prefill, decode, traits } = placer.place(TINY, new Exclusions());
    assert.equal(decode, undefined);
    assert.equal(traits.decodeFirst, false);
    assert.equal(placer.placeDecode(prefill!, new Exclusions()).info.instanceId, "x");
  });

  it("pairs only instances that fit", () => {
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

  it("prefers instances with a free slot, but also asks the others, because figures may be stale", () => {
    assert.equal(ids(placerOf([{ id: "a" }], [{ id: "x", freeSlots: 0 }, { id: "y" }]), 2), "ay ay");
    assert.equal(ids(placerOf([{ id: "a" }], [{ id: "x", freeSlots: 0 }]), 1), "ax");
  });

  it("uses an instance that failed again only if there is no other", () => {
    const view = viewOf([{ id: "a" }], [{ id: "x" }, { id: "y" }]);
    const placer = createPlacer({ view }, policies());
    const exclusions = new Exclusions();
    exclusions.exclude(view.decode[0]!.instance, "failed");
    exclusions.exclude(view.prefill[0]!.instance, "failed");
    assert.equal(ids(placer, 2, exclusions), "ay ay");
  });

  it("skips a busy instance until its figures show a free slot", () => {
    const before = known(Role.DECODE, { id: "x", legs: 3, freeSlots: 1 });
    const exclusions = new Exclusions();
    exclusions.busy(before);
    assert.equal(exclusions.isBusy(before), true);
    assert.equal(exclusions.isBusy({ ...before, freeSlots: 0, load: create(LoadSchema) }), true);
    assert.equal(exclusions.isBusy({ ...before, legs: 2 }), false, "a leg of ours ended there");
    exclusions.busy(before);
    assert.equal(exclusions.isBusy({ ...before, load: create(LoadSchema) }), false, "it says so itself");
  });

  it("uses an instance that hung again once it has another engine, and waits for one that loads", () => {
    const view = viewOf([{ id: "a" }], [{ id: "x" }]);
    const placer = createPlacer({ view }, policies());
    const exclusions = new Exclusions();
    const [prefill] = view.prefill.map(({ instance }) => instance);
    exclusions.exclude(prefill!, "wedged");
    assert.throws(() => placer.place(TINY, exclusions), { code: "no_instance" });
    assert.equal(exclusions.isWedged({ ...prefill!, info: { ...prefill!.info, kvAddress: "10.0.0.9:1" } }), false);
    const loading = viewOf(
      [{ id: "a" }, { id: "b", state: State.STARTING, load: create(LoadSchema, { readyInMs: 4_000 }) }],
      [{ id: "x" }],
    );
    assert.throws(() => createPlacer({ view: loading }, policies()).place(TINY, exclusions), { code: "instance_busy" });
  });

  it("skips one that took no leg until it reports, however many of its legs end", () => {
    const before = known(Role.DECODE, { id: "x", legs: 3, freeSlots: 1 });
    const exclusions = new Exclusions();
    exclusions.refused(before);
    assert.equal(exclusions.isBusy({ ...before, legs: 0 }), true);
    assert.equal(exclusions.isBusy({ ...before, load: create(LoadSchema) }), false);
  });

  it("pays no prefill while all its partners are busy", () => {
    const nixl = { info: { connector: "nixl" } };
    const view = viewOf([{ id: "a", ...nixl }], [{ id: "x", ...nixl }]);
    const placer = createPlacer({ view }, policies());
    const exclusions = new Exclusions();
    exclusions.busy(view.decode[0]!.instance);
    assert.throws(() => placer.place(TINY, exclusions), {
      code: "instance_busy",
      message: /The decode instance is busy/,
    });
  });

  it("reports the model's lack if it has no pair", () => {
    for (const [prefill, decode] of [
      [[], []],
      [[{ id: "a" }], [{ id: "x", drained: true }]],
    ] as const) {
      const view = viewOf(prefill, decode);
      const lack =
        view.models.get("tiny")?.lack(true) ?? "The model `tiny` can't be served: no instance of it is registered.";
      assert.throws(() => createPlacer({ view }, policies()).place(TINY, new Exclusions()), {
        code: "no_instance",
        message: `${lack} Try again in a second.`,
        retryAfterS: 1,
      });
    }
  });

  it("finds a decode instance for KV whose prefill instance is draining by now", () => {
    const nixl = { info: { connector: "nixl" } };
    const view = viewOf([{ id: "a", ...nixl, drained: true }], [{ id: "x", ...nixl }]);
    const placer = createPlacer({ view }, policies());
    assert.throws(() => placer.place({ ...TINY, strict: true }, new Exclusions()), { code: "no_instance" });
    assert.equal(placer.placeDecode(view.prefill[0]!.instance, new Exclusions()).instanceId, "x");
  });
});
