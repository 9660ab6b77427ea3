import assert from "node:assert/strict";
import { FindingLevel } from "#gen/tandem/instance/v1/instance_pb.js";
import { examineRegistry } from "../../../services/router/control/diagnose.ts";

describe("the doctor's findings about the registry", () => {
  const consul = { kind: "consul", address: "127.0.0.1:8500", up: true, error: "", settingsError: "" };
  const levels = (status: object) => examineRegistry(status).map(({ check, level }) => [check, level]);

  it("are none if the registry is part of the router, or a list", () => {
    assert.deepEqual(examineRegistry({ kind: "embedded", up: true }), []);
    assert.deepEqual(examineRegistry({ kind: "static", up: true }), []);
  });

  it("say that Consul answers, or why not and what still works", () => {
    assert.deepEqual(levels(consul), [["registry", FindingLevel.OK]]);
    const [away] = examineRegistry({ ...consul, up: false, error: "Consul at x does not answer: ECONNREFUSED" });
    assert.equal(away!.level, FindingLevel.WARNING);
    assert.match(away!.message!, /^Consul at x does not answer: ECONNREFUSED\. The router goes on/);
  });

  it("name the setting in Consul that can't be used", () => {
    const bad = { ...consul, settingsError: "consul tandem/config/default/queue.limit: expected an integer." };
    assert.deepEqual(levels(bad), [
      ["registry", FindingLevel.OK],
      ["settings", FindingLevel.WARNING],
    ]);
    assert.match(examineRegistry(bad)[1]!.message!, /queue\.limit: expected an integer\./);
  });
});
