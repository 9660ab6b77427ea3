// The pairing grammar of vLLM 0.23's P2pNcclConnector (`parse_request_id`): searched anywhere in the
// engine-level id, greedy, so nothing after the decode address may hold a colon followed by digits.
// Canonical: ___prefill_addr_{ip:port}___decode_addr_{ip:port}_{32 hex}

const DECODE = /___decode_addr_(.*):(\d+)/;
const PREFILL = /___prefill_addr_(.*):(\d+)___/;

/** Where a prefill engine has to send, as `host:port`. Null: the id pairs nothing. */
export function decodeAddressOf(id: string): string | null {
  return address(DECODE.exec(id));
}

/** Where a decode engine's KV comes from, as `host:port`. */
export function prefillAddressOf(id: string): string | null {
  return address(PREFILL.exec(id));
}

function address(match: RegExpExecArray | null): string | null {
  return match === null ? null : `${match[1]!}:${match[2]!}`;
}
