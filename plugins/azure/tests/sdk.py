"""Has Microsoft's client of Key Vault get, list, sign and decrypt, and prints what it got as JSON.

It finds the service by its real name: HTTPS_PROXY and REQUESTS_CA_BUNDLE say how.
"""

import hashlib
import json
import os
import time

import requests
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, EncryptionAlgorithm, SignatureAlgorithm

VAULT = "https://demo.vault.azure.net"
DIGESTS = {
    name: getattr(hashlib, f"sha{name[2:5]}")(b"signed").digest()
    for name in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
}


class Application:
    """A credential as the client wants one."""

    def __init__(self):
        self.asked = []

    def get_token(self, *scopes, **options):
        self.asked.append([*scopes, options["tenant_id"]])
        form = {
            "grant_type": "client_credentials",
            "client_id": os.environ["CLIENT_ID"],
            "client_secret": os.environ["CLIENT_SECRET"],
            "scope": scopes[0],
        }
        url = f"https://login.microsoftonline.com/{options['tenant_id']}/oauth2/v2.0/token"
        answer = requests.post(url, data=form, timeout=60)
        answer.raise_for_status()
        token = answer.json()
        return AccessToken(token["access_token"], int(time.time()) + token["expires_in"])


def signatures(key, algorithms):
    crypto = CryptographyClient(key, application)
    for name in algorithms:
        result = crypto.sign(SignatureAlgorithm(name), DIGESTS[name])
        assert crypto.verify(SignatureAlgorithm(name), DIGESTS[name], result.signature).is_valid, name
        digest, signature = DIGESTS[name].hex(), result.signature.hex()
        yield {"key": key.name, "algorithm": name, "digest": digest, "signature": signature}


def decrypted(key):
    crypto = CryptographyClient(key, application)
    for name in ["RSA1_5", "RSA-OAEP", "RSA-OAEP-256"]:
        algorithm = EncryptionAlgorithm(name)
        ciphertext = crypto.encrypt(algorithm, b"a secret").ciphertext
        yield crypto.decrypt(algorithm, ciphertext).plaintext.decode()


def refusal(of):
    try:
        of()
    except HttpResponseError as error:
        return [error.status_code, error.error.code]
    raise AssertionError("expected a refusal")


application = Application()
client = KeyClient(VAULT, application)
rsa, p256, p384, p521 = (client.get_key(name) for name in ["rsa", "p256", "p384", "p521"])
disabled = CryptographyClient(client.get_key("disabled").id, application)
print(json.dumps({
    "types": {name: str(client.get_key(name).key_type.value) for name in ["rsa", "p384"]},
    "listed": [key.name for key in client.list_properties_of_keys()],
    "tags": client.get_key("rsa").properties.tags,
    "versions": len(list(client.list_properties_of_key_versions("rsa"))),
    "signatures": [
        *signatures(rsa, ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        *signatures(p256, ["ES256"]),
        *signatures(p384, ["ES384"]),
        *signatures(p521, ["ES512"]),
    ],
    "decrypted": list(decrypted(rsa)),
    "missing": refusal(lambda: client.get_key("missing")),
    "disabled": refusal(lambda: disabled.sign(SignatureAlgorithm.es256, DIGESTS["ES256"])),
    "asked": application.asked,
}))
