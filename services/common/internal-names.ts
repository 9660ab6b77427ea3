// Names that only Tandem and its engines may know: parts of vLLM's ids and parameters, and addresses. No client sees a
// text that holds one.
const INTERNAL =
  /___(prefill|decode)_addr_|kv_transfer_params|ec_transfer_params|\b(?:cmpl|chatcmpl)-[0-9a-f_]{8,}|\b\d{1,3}(?:\.\d{1,3}){3}:\d+|\blocalhost:\d+/;

export function namesInternals(text: string): boolean {
  return INTERNAL.test(text);
}
