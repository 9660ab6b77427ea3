import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { FindingLevel } from "#gen/tandem/instance/v1/instance_pb.js";
import { DiagnosisSchema, type Diagnosis } from "#gen/tandem/router/v1/router_pb.js";
import { doctorConfig, hasError, renderDiagnoses } from "../../../clients/cli/doctor.ts";
import { loadConfig } from "../../../services/common/config.ts";

const diagnosis = (level: FindingLevel, check: string, message: string, cure = "", decodeInstanceId = ""): Diagnosis =>
  create(DiagnosisSchema, {
    decodeInstanceId,
    prefillInstanceId: decodeInstanceId === "" ? "" : "p-1",
    finding: { check, level, message, cure },
  });

describe("the doctor's report", () => {
  const found = [
    diagnosis(FindingLevel.OK, "version", "vLLM 0.32.0."),
    diagnosis(FindingLevel.WARNING, "spare_prefill", "Only one.", "Run two."),
    diagnosis(FindingLevel.ERROR, "probe", "Garbage.", "Use PIECEWISE.", "d-1"),
  ];
  it("has the worst first, each with its cure, and leaves out what is fine", () => {
    assert.equal(
      renderDiagnoses(found, false),
      "ERROR  p-1 with d-1  probe\n  Garbage.\n  → Use PIECEWISE.\nWARNING  spare_prefill\n  Only one.\n  → Run two.\n\n1 errors, 1 warnings, 0 unknown, 1 fine.",
    );
    assert.match(renderDiagnoses(found, true), /ok {2}version\n {2}vLLM 0\.32\.0\./);
    assert.equal(renderDiagnoses([found[0]!], false), "0 errors, 0 warnings, 0 unknown, 1 fine.");
  });
  it("says by its exit code whether something gives wrong answers or none", () => {
    assert.equal(hasError(found), true);
    assert.equal(hasError(found.slice(0, 2)), false);
  });
});

describe("the doctor's flags", () => {
  it("say that --no-canaries is --no-probes now", () => {
    assert.throws(
      () => loadConfig(doctorConfig, { argv: ["--no-canaries"], env: {} }),
      /--no-canaries .* --no-probes\.$/,
    );
  });
});
