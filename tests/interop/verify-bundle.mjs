// Verifies a bundle with npm's @sigstore/verify, as a stranger to this project would.
// Usage: node verify-bundle.mjs BUNDLE.json KEY.pub   (prints the signed payload)
// Exit status: 0 verified, 3 refused (the code is on stderr), anything else: this script broke.
import { createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";

import { bundleFromJSON } from "@sigstore/bundle";
import { Verifier, toSignedEntity } from "@sigstore/verify";

const [bundlePath, keyPath] = process.argv.slice(2);
const bundle = bundleFromJSON(JSON.parse(readFileSync(bundlePath, "utf8")));
const publicKey = createPublicKey(readFileSync(keyPath));
const hint = bundle.verificationMaterial.content.publicKey.hint;
const trustMaterial = {
  certificateAuthorities: [],
  timestampAuthorities: [],
  tlogs: [],
  ctlogs: [],
  publicKey: (asked) => {
    if (asked !== hint) throw new Error(`asked for another key: ${asked}`);
    return { publicKey, validFor: () => true };
  },
};
const options = { ctlogThreshold: 0, tlogThreshold: 0, timestampThreshold: 0 };
try {
  new Verifier(trustMaterial, options).verify(toSignedEntity(bundle));
} catch (error) {
  if (!error.code) throw error;
  console.error(error.code);
  process.exit(3);
}
process.stdout.write(bundle.content.dsseEnvelope.payload);
