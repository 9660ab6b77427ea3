// The certificates of a process that serves or calls others over TLS.
import { boolean, list, text, type Values } from "../common/config.ts";

export const tlsSettings = {
  cert: text(
    "tls.cert",
    "PEM file of this process's certificate, followed by those between it and the authority. With tls.key and tls.ca: " +
      "gRPC is mutual TLS, and certificates take the place of the join token. Read again when the file changes.",
    { default: "" },
  ),
  key: text("tls.key", "PEM file of the certificate's private key.", { default: "" }),
  ca: text("tls.ca", "PEM file of the authorities that signed the certificates of peers.", { default: "" }),
  peerIds: list(
    "tls.peer_ids",
    "Names of which a peer's certificate must have one: DNS names, or URIs such as spiffe://DOMAIN/ns/NS/dc/DC/svc/NAME. " +
      "A * at the end stands for any rest. Empty: each certificate of tls.ca will do, so let that authority sign for this " +
      "deployment only.",
  ),
} as const;

export type TlsSettings = Values<typeof tlsSettings>;

export const restTls = boolean(
  "rest.tls",
  "Serves REST over TLS if tls.cert is set. --no-rest.tls: in clear, for a load balancer on this machine.",
  { default: true },
);
