import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createAuthority, signLeaf, validFor } from "../../../clients/cli/certs/authority.ts";
import { certs } from "../../../clients/cli/certs/certs.ts";
import { withRouter } from "../../../clients/cli/router-calls.ts";
import { ConfigError } from "../../../services/common/config.ts";
import { openTls } from "../../../services/rpc/tls.ts";
import { silentLog } from "../../support/log-sink.ts";

describe("a certificate of the development authority", () => {
  const authority = createAuthority("tests", validFor(1));
  const leafOf = (names: readonly string[], notAfter = validFor(1).notAfter): X509Certificate =>
    new X509Certificate(signLeaf(authority, names, { notBefore: new Date(0), notAfter }).cert);

  it("is signed by the authority, and has its names", () => {
    const leaf = leafOf(["localhost", "127.0.0.1", "2001:db8::5:6", "spiffe://domain/ns/a/svc/b"]);
    const ca = new X509Certificate(authority.cert);
    assert.ok(leaf.checkIssued(ca) && leaf.verify(ca.publicKey) && ca.ca && !leaf.ca);
    assert.deepEqual(leaf.subjectAltName!.split(", "), [
      "DNS:localhost",
      "IP Address:127.0.0.1",
      "IP Address:2001:DB8:0:0:0:0:5:6",
      "URI:spiffe://domain/ns/a/svc/b",
    ]);
    assert.equal(leaf.checkHost("localhost"), "localhost");
    assert.equal(leaf.checkIP("2001:db8::5:6"), "2001:db8::5:6");
    assert.equal(leaf.checkHost("elsewhere"), undefined);
  });

  it("may end after 2049, where the format of dates changes", () => {
    for (const year of [2049, 2050, 2101])
      assert.match(leafOf(["x"], new Date(Date.UTC(year, 5, 1))).validTo, new RegExp(`^Jun +1 00:00:00 ${year} GMT$`));
  });
});

describe("tandem certs", () => {
  let folder: string;
  beforeEach(() => (folder = mkdtempSync(join(tmpdir(), "tandem-certs-cli-"))));
  afterEach(() => rmSync(folder, { recursive: true }));

  it("makes files that a process can use, and replaces the certificate but not the authority", () => {
    const read = (name: string): string => readFileSync(join(folder, name), "utf8");
    certs([folder, "--host", "10.0.0.7", "--days", "2"]);
    const [ca, first] = [read("ca.pem"), read("tandem.pem")];
    for (const name of ["ca-key.pem", "tandem-key.pem"]) assert.equal(statSync(join(folder, name)).mode & 0o777, 0o600);
    assert.match(new X509Certificate(first).subjectAltName!, /DNS:localhost, .*IP Address:10\.0\.0\.7/);
    certs([folder]);
    assert.equal(read("ca.pem"), ca);
    assert.notEqual(read("tandem.pem"), first);
    const at = (name: string): string => join(folder, name);
    const files = { cert: at("tandem.pem"), key: at("tandem-key.pem"), ca: at("ca.pem"), peerIds: [] };
    openTls(files, { log: silentLog })![Symbol.dispose]();
    assert.throws(() => certs([]), ConfigError);
    assert.throws(() => certs([folder, "--name", "ca"]), ConfigError);
  });
});

describe("a command that knows a join token", () => {
  it("does not send it to another machine in clear", async () => {
    const target = { grpcAddress: undefined, token: "t", tls: { cert: "", key: "", ca: "", peerIds: [] } };
    const use = (): never => assert.fail("a call was made");
    await assert.rejects(withRouter({ ...target, url: "http://router.example:3000" }, use), /in clear.*--router\.grpc/);
    for (const url of ["https://router.example:3000", "http://127.0.0.1:3000", "http://[::1]:3000"])
      assert.equal(await withRouter({ ...target, url }, async () => "used"), "used");
  });
});
