// Who serves, and why not: by all that is known of an instance, and by its partners.
import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { LoadSchema, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { Breaker, BREAKER_LIMITS } from "../../../services/router/pool/breaker.ts";
import { mostAreSuspect } from "../../../services/router/pool/doubt.ts";
import { Pairs } from "../../../services/router/pool/pairs.ts";
import { REASONS } from "../../../services/router/pool/standing.ts";
import { type KnownInit, standingIn, type ViewOptions, viewOf } from "../support/fleet.ts";

type Init = Omit<KnownInit, "id">;

const NIXL: Init = { info: { connector: "nixl" } };
const CRITICAL: Init = { objection: { kind: "critical", reason: "Its check fails." } };
const MISSING: Init = { objection: { kind: "missing", reason: "It is no longer listed." } };
const MAINTENANCE: Init = { objection: { kind: "maintenance", reason: "An operator took it out." } };
const down = (reason: "unreachable" | "denied" | "silent"): Init => ({
  link: { kind: "down", reason, text: `It is ${reason}.` },
});
const SIXTEEN: Init = { info: { blockSize: 16 } };
const THIRTY_TWO: Init = { info: { blockSize: 32 } };

function pairsWith(change: (pairs: Pairs) => void): Pairs {
  const pairs = new Pairs(BREAKER_LIMITS);
  change(pairs);
  return pairs;
}

/** [what, the decode instance d1, another decode instance d2 (or none), how d1 stands] */
const ONE_INSTANCE: readonly (readonly [string, Init, Init | undefined, string])[] = [
  ["all is well", {}, undefined, "serves"],
  // Its own word.
  ["it has not reported yet", { state: undefined }, undefined, "starting"],
  ["it starts", { state: State.STARTING }, undefined, "starting"],
  ["it drains", { state: State.DRAINING }, undefined, "draining"],
  ["it has stopped", { state: State.STOPPED }, undefined, "stopped"],
  // Operators.
  ["it was drained here", { drained: true }, undefined, "draining"],
  ["it was drained here, and the link broke", { drained: true, ...down("unreachable") }, undefined, "draining"],
  ["it is in maintenance, and it is the last one", MAINTENANCE, undefined, "draining"],
  // The link.
  ["the connection broke", down("unreachable"), undefined, "unreachable"],
  ["it refuses the token", down("denied"), undefined, "denied"],
  ["its heartbeat stays away", down("silent"), undefined, "silent"],
  ["it is suspect", { suspect: true }, {}, "suspect"],
  ["it is suspect, and no other serves", { suspect: true }, undefined, "serves"],
  ["it is suspect, and the other one is too", { suspect: true }, { suspect: true }, "serves"],
  ["it is suspect, and the other one drains", { suspect: true }, { drained: true }, "serves"],
  ["it is suspect, and the other one serves another model", { suspect: true }, { info: { model: "big" } }, "serves"],
  // Its registry.
  ["its check fails", CRITICAL, {}, "unlisted"],
  ["its check fails, and no other serves", CRITICAL, undefined, "serves"],
  ["it is no longer listed", MISSING, {}, "unlisted"],
  ["it is no longer listed, and says that it drains", { ...MISSING, state: State.DRAINING }, {}, "draining"],
  ["it left, and runs legs", { registered: false, legs: 1 }, undefined, "left"],
  ["it left and drains", { registered: false, state: State.DRAINING }, undefined, "left"],
  // How legs on it end.
  ["legs fail on it", { failing: true }, {}, "failing"],
  ["legs fail on it, and no other serves", { failing: true }, undefined, "serves"],
  ["legs fail on it, and a probe got a wrong answer", { failing: true, wrong: true }, undefined, "failing"],
  ["legs fail on it, and its engine is new and unproven", { failing: true, unproven: true }, undefined, "failing"],
  [
    "legs fail on it, no other serves, and it says that it starts",
    { failing: true, state: State.STARTING },
    undefined,
    "starting",
  ],
  [
    "legs fail on it, no other serves, and its link broke",
    { failing: true, ...down("unreachable") },
    undefined,
    "unreachable",
  ],
  ["legs fail on it, and it drains", { failing: true, drained: true }, {}, "draining"],
  ["legs fail on it, and its check fails", { failing: true, ...CRITICAL }, {}, "failing"],
  // Proofs.
  ["no probe has succeeded", { unproven: true }, {}, "unproven"],
  ["no probe has succeeded, and it serves without prefill too", { unproven: true, ...NIXL }, { ...NIXL }, "serves"],
];

/** [what, prefill p1, decode d1, options, how p1 stands, how d1 stands, whether they are a pair] */
const TWO_INSTANCES: readonly (readonly [string, Init, Init, ViewOptions, string, string, boolean])[] = [
  ["all is well", {}, {}, {}, "serves", "serves", true],
  ["their facts differ", SIXTEEN, THIRTY_TWO, {}, "unmatched", "unmatched", false],
  ["one of them does not report a fact", SIXTEEN, {}, {}, "serves", "serves", true],
  [
    "their facts differ, and decode serves alone too",
    { info: { connector: "nixl", tpSize: 1 } },
    { info: { connector: "nixl", tpSize: 2 } },
    {},
    "unmatched",
    "serves",
    false,
  ],
  [
    "they have a connector of a later version",
    { info: { connector: "warp" } },
    { info: { connector: "warp" } },
    {},
    "unmatched",
    "unmatched",
    false,
  ],
  ["they serve different models", {}, { info: { model: "big" } }, {}, "serves", "serves", false],
  ["the other one drains", {}, { drained: true }, {}, "serves", "draining", false],
  ["the other one is unproven", {}, { unproven: true }, {}, "serves", "unproven", false],
  ["the other one is unproven, and serves alone", NIXL, { unproven: true, ...NIXL }, {}, "serves", "serves", false],
  [
    "legs of the pair fail",
    {},
    {},
    { pairs: pairsWith((pairs) => pairs.judge("p1", "d1", "wedged", 0)) },
    "serves",
    "serves",
    true,
  ],
  [
    "legs of the pair fail, and a probe got a wrong answer",
    {},
    {},
    {
      pairs: pairsWith((pairs) => {
        pairs.judge("p1", "d1", "wedged", 0);
        pairs.probeFailed("p1", "d1", "wrong", "It is wrong.", 0);
      }),
    },
    "serves",
    "serves",
    false,
  ],
  [
    "no probe has gone through the pair",
    {},
    {},
    { pairs: pairsWith((pairs) => pairs.expect("p1", "d1", 0)) },
    "unproven",
    "serves",
    false,
  ],
];

describe("the standing of an instance", () => {
  for (const [what, first, second, expected] of ONE_INSTANCE) {
    it(`${second === undefined ? "alone" : "beside another"}, where ${what}: ${expected}`, () => {
      const decodes = [{ id: "d1", ...first }, ...(second === undefined ? [] : [{ id: "d2", ...second }])];
      const view = viewOf([{ id: "p1", ...(first.info?.connector === "nixl" ? NIXL : {}) }], decodes);
      assert.equal(standingIn(view, "d1"), expected);
      const { standing } = view.decode.find(({ instance }) => instance.instanceId === "d1")!;
      assert.ok(standing.kind === "serves" || standing.text.endsWith("."), "it says why, in a sentence");
    });
  }

  for (const [what, prefill, decode, options, ofPrefill, ofDecode, paired] of TWO_INSTANCES) {
    it(`in a pair, where ${what}: ${ofPrefill} and ${ofDecode}`, () => {
      const view = viewOf([{ id: "p1", ...prefill }], [{ id: "d1", ...decode }], options);
      assert.deepEqual([standingIn(view, "p1"), standingIn(view, "d1")], [ofPrefill, ofDecode]);
      const [{ instance: p1 }, { instance: d1 }] = [view.prefill[0]!, view.decode[0]!];
      const model = view.models.get("tiny")!;
      assert.equal(model.prefills.includes(p1) && model.partnersOf(p1).includes(d1), paired);
      assert.equal(view.pairFault(p1, d1) === undefined, paired, "the text agrees");
    });
  }

  it("has no reason twice", () => {
    assert.equal(new Set(REASONS).size, REASONS.length);
  });
});

/** [what, the decode instances d1, d2, ..., those that serve, whether the router doubts itself] */
const FLEETS: readonly (readonly [string, readonly Init[], string, boolean?])[] = [
  ["one of two fails", [{ failing: true }, {}], "d2"],
  ["two of three fail", [{ failing: true }, { failing: true }, {}], "d1 d2 d3"],
  ["two of four fail", [{ failing: true }, { failing: true }, {}, {}], "d3 d4"],
  ["three of four are suspect", [{ suspect: true }, { suspect: true }, { suspect: true }, {}], "d1 d2 d3 d4"],
  ["one is suspect, and one fails", [{ suspect: true }, { failing: true }, {}], "d1 d2 d3"],
  ["one of four is suspect", [{ suspect: true }, {}, {}, {}], "d2 d3 d4"],
  ["one of four is suspect, and the router doubts itself", [{ suspect: true }, {}, {}, {}], "d1 d2 d3 d4", true],
  ["all fail", [{ failing: true }, { failing: true }], "d1 d2"],
  ["all fail, one with wrong answers", [{ failing: true }, { failing: true, wrong: true }], "d1"],
  ["two of three are unlisted", [CRITICAL, CRITICAL, {}], "d3"],
  ["the connections of two of three broke", [down("unreachable"), down("silent"), {}], "d3"],
];

describe("a side of a model", () => {
  for (const [what, decodes, serving, doubtsItself] of FLEETS) {
    it(`where ${what}, keeps ${serving}`, () => {
      const inits = decodes.map((init, index) => ({ id: `d${index + 1}`, ...init }));
      const view = viewOf([{ id: "p1" }], inits, doubtsItself === true ? { doubtsItself } : {});
      const ids = view.decode
        .filter(({ standing }) => standing.kind === "serves")
        .map(({ instance }) => instance.instanceId);
      assert.equal(ids.join(" "), serving);
      const model = view.models.get("tiny")!;
      const partners = model.partnersOf(model.prefills[0]!).map(({ instanceId }) => instanceId);
      assert.equal(partners.join(" "), serving, "placement uses them");
    });
  }

  it("whose pairs all fail keeps those that no probe has shown to be wrong, and tells which", () => {
    const decodes = [{ id: "d1" }, { id: "d2" }];
    const failing = pairsWith((pairs) => {
      for (const decode of decodes) pairs.judge("p1", decode.id, "wedged", 0);
    });
    const alone = viewOf([{ id: "p1" }], decodes, { pairs: failing }).models.get("tiny")!;
    assert.deepEqual(
      alone.partnersOf(alone.prefills[0]!).map(({ instanceId }) => instanceId),
      ["d1", "d2"],
    );
    assert.deepEqual(
      [...alone.lastResorts].map(({ instanceId }) => instanceId),
      ["p1"],
    );
    const two = viewOf([{ id: "p1" }, { id: "p2" }], decodes, { pairs: failing }).models.get("tiny")!;
    assert.deepEqual(
      two.prefills.map(({ instanceId }) => instanceId),
      ["p2"],
      "half of the side is enough",
    );
  });
});

describe("a router", () => {
  const of = (suspects: number, sound: number, down = 0): boolean =>
    mostAreSuspect([
      ...Array.from({ length: suspects }, () => ({ registered: true, link: { kind: "up" as const }, suspect: true })),
      ...Array.from({ length: sound }, () => ({ registered: true, link: { kind: "up" as const }, suspect: false })),
      ...Array.from({ length: down }, () => ({
        registered: true,
        link: { kind: "down" as const, reason: "unreachable" as const, text: "" },
        suspect: false,
      })),
    ]);

  /** [suspect, heard, broken, whether it doubts itself] */
  for (const [suspects, sound, broken, doubts] of [
    [0, 0, 0, false],
    [1, 0, 0, false],
    [2, 0, 0, true],
    [1, 1, 0, false],
    [2, 2, 0, false],
    [3, 1, 0, true],
    [2, 1, 0, true],
    [2, 0, 6, true],
    [0, 0, 4, false],
    [51, 50, 0, true],
  ] as const) {
    const fleet = `${suspects} instances are suspect, ${sound} are heard and ${broken} have no connection`;
    it(`${doubts ? "doubts" : "does not doubt"} itself where ${fleet}`, () =>
      assert.equal(of(suspects, sound, broken), doubts));
  }
});

describe("a model", () => {
  it("has the slots of the decode instances that serve it", () => {
    const view = viewOf(
      [{ id: "p1" }],
      [
        { id: "d1", slots: 3 },
        { id: "d2", slots: 4 },
        { id: "d3", slots: 5, drained: true },
      ],
    );
    assert.equal(view.models.get("tiny")!.slots, 7);
  });

  it("stays ready while another one lost its last decode instance", () => {
    const big = { info: { model: "big" } };
    const view = viewOf([{ id: "p1" }, { id: "p2", ...big }], [{ id: "d1" }, { id: "d2", ...big, ...down("silent") }]);
    assert.equal(view.models.get("tiny")!.lack(false), undefined);
    assert.equal(
      view.models.get("big")!.lack(false),
      "The model `big` can't be served: its only decode instance is out (silent).",
    );
  });

  const lacks: readonly (readonly [string, readonly KnownInit[], readonly KnownInit[], string])[] = [
    ["decode", [{ id: "a" }], [], "no decode instance is registered"],
    [
      "decode that serves",
      [{ id: "a" }],
      [
        { id: "x", drained: true },
        { id: "y", state: State.STARTING },
        { id: "z", drained: true },
      ],
      "all 3 decode instances are out (2 draining, 1 starting)",
    ],
    [
      "both",
      [{ id: "a", failing: true, wrong: true }],
      [{ id: "x", drained: true }],
      "its only prefill instance is out (failing), and its only decode instance is out (draining)",
    ],
    [
      "instances that fit",
      [{ id: "a", ...SIXTEEN }],
      [{ id: "x", ...THIRTY_TWO }],
      "its prefill and decode instances don't fit each other: they differ in the KV block size",
    ],
  ];
  for (const [what, prefill, decode, lack] of lacks) {
    it(`says that it lacks ${what}, and names no instance`, () => {
      const model = viewOf(prefill, decode).models.get("tiny")!;
      assert.equal(model.lack(false), `The model \`tiny\` can't be served: ${lack}.`);
    });
  }

  it("that decode may serve unpaired lacks only a pair", () => {
    const alone = (o: ViewOptions) => viewOf([], [{ id: "x", ...NIXL }], o).models.get("tiny")!;
    const allowed = alone({ unpaired: true });
    assert.equal(allowed.lack(false), undefined);
    assert.match(allowed.lack(true)!, /no prefill instance is registered/);
    assert.match(alone({}).lack(false)!, /no prefill instance is registered/);
  });

  it("shares one list of partners among instances of one build", () => {
    const ids = Array.from({ length: 64 }, (_, index) => String(index));
    const view = viewOf(
      ids.map((id) => ({ id: `p${id}` })),
      ids.map((id) => ({ id: `d${id}` })),
    );
    const { prefills, partnersOf } = view.models.get("tiny")!;
    const lists = new Set(prefills.map((one) => partnersOf.call(view.models.get("tiny")!, one)));
    assert.deepEqual([prefills.length, lists.size, [...lists][0]!.length], [64, 1, 64]);
  });
});

describe("the end of a lack", () => {
  const starting = (id: string, readyInMs?: number): KnownInit => ({
    id,
    state: State.STARTING,
    load: create(LoadSchema, readyInMs === undefined ? {} : { readyInMs }),
    loadAtMs: 10_000,
  });
  const endOf = (prefill: readonly KnownInit[], decode: readonly KnownInit[], paired = true) =>
    viewOf(prefill, decode).models.get("tiny")!.lackEnd(paired, 12_000);

  it("is when the first engine of each missing side has started", () => {
    const end = endOf([starting("p1", 40_000), starting("p2", 7_000)], [starting("d1", 14_000)]);
    assert.deepEqual(end, {
      inMs: 12_000,
      text:
        "The model `tiny` is loading: all 2 prefill instances are out (2 starting), and its only decode instance is out " +
        "(starting), ready in about 12 s.",
    });
  });

  it("is near while a first probe is under way, or the time is up", () => {
    assert.deepEqual(endOf([{ id: "p1", unproven: true }], [{ id: "d1" }]), {
      inMs: 1_000,
      text: "The model `tiny` can't be served: its only prefill instance is out (unproven). A probe is about to decide.",
    });
    assert.equal(endOf([starting("p1", 500)], [{ id: "d1" }])!.inMs, 1_000);
  });

  it("is unknown if nothing is missing, or a side has no engine that is being started", () => {
    assert.equal(endOf([{ id: "p1" }], [{ id: "d1" }]), undefined);
    assert.equal(endOf([starting("p1", 5_000)], []), undefined);
    assert.equal(endOf([starting("p1", 5_000)], [{ id: "d1", state: State.DRAINING }]), undefined);
    const failed = new Breaker(BREAKER_LIMITS);
    failed.judge("wedged", 0);
    assert.equal(endOf([{ id: "p1" }], [{ id: "d1", breaker: failed }]), undefined, "it serves as a last resort");
    failed.probeFailed("wrong", "It answers wrongly.", 0);
    assert.equal(endOf([{ id: "p1" }], [{ id: "d1", breaker: failed }]), undefined, "a probe has failed as well");
    assert.equal(endOf([starting("p1")], [{ id: "d1" }]), undefined, "an older instance doesn't say");
    const cut: KnownInit = {
      ...starting("p1", 5_000),
      link: { kind: "down", reason: "silent", text: "It is silent." },
    };
    assert.equal(endOf([cut], [{ id: "d1" }]), undefined);
  });
});
