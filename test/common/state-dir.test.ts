import assert from "node:assert/strict";
import { loadConfig } from "../../services/common/config.ts";
import { stateDirOf } from "../../services/common/state-dir.ts";
import { prefillConfig } from "../../services/prefill/config.ts";
import { upConfig } from "../../clients/cli/up/config.ts";

describe("the state folder", () => {
  const unset = { stateDir: undefined };

  it("is the one that the XDG base directory specification names", () => {
    assert.equal(stateDirOf(unset, { XDG_STATE_HOME: "/var/s" }), "/var/s/tandem");
    assert.match(stateDirOf(unset, { XDG_STATE_HOME: "relative" }), /\/\.local\/state\/tandem$/);
    assert.match(stateDirOf(unset, {}), /\/\.local\/state\/tandem$/);
  });

  it("is the same for the launcher and the instances", () => {
    const env = { TANDEM_STATE_DIR: "/srv/state", XDG_STATE_HOME: "/var/s" };
    assert.equal(stateDirOf(loadConfig(upConfig, { argv: [], env }).process, env), "/srv/state");
    assert.equal(stateDirOf(loadConfig(prefillConfig, { argv: [], env }).process, env), "/srv/state");
  });
});
