"""Google's own client of Cloud KMS, by REST, against the fake: whatever it doesn't like ends it.

Arguments: a JSON file with the ring, the keys by algorithm, the files of credentials, and the metadata server.
"""

import hashlib
import json
import sys

import google.auth
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from google.api_core import exceptions
from google.auth import compute_engine, identity_pool
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request
from google.cloud import kms_v1
from google.oauth2.credentials import Credentials

SITE = json.load(open(sys.argv[1]))
RING = SITE["ring"]
MESSAGE = b"what is to be signed"
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
# DigestInfo of SHA-256 up to the digest (RFC 8017 section 9.2).
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def client(credentials):
    return kms_v1.KeyManagementServiceClient(credentials=credentials, transport="rest")


def read(credential):
    """The credentials of a file. Of a workload, `google.auth` would look for the project, which nothing needs."""
    if credential["type"] == "external_account":
        return identity_pool.Credentials.from_info(credential, scopes=SCOPES)
    return google.auth.load_credentials_from_dict(credential, scopes=SCOPES)[0]


def version(key, number=1):
    return f"{RING}/cryptoKeys/{key}/cryptoKeyVersions/{number}"


def raises(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} was expected")


def public_key(kms, name):
    public = kms.get_public_key(name=name)
    assert public.name == name and public.pem_crc32c == crc32c(public.pem.encode()), public
    return public, serialization.load_pem_public_key(public.pem.encode())


def verify(key, algorithm, signature):
    if algorithm.startswith("EC_SIGN_ED25519"):
        return key.verify(signature, MESSAGE)
    bits = algorithm.rsplit("SHA", 1)[-1] if "SHA" in algorithm else "256"
    digest = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[bits]
    if algorithm.startswith("EC_"):
        return key.verify(signature, MESSAGE, ec.ECDSA(digest))
    pss = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
    return key.verify(signature, MESSAGE, pss if "_PSS_" in algorithm else padding.PKCS1v15(), digest)


def sign(kms, algorithm, name):
    if "ED25519" in algorithm or "RAW" in algorithm:
        raw = SHA256_INFO + hashlib.sha256(MESSAGE).digest() if "RAW" in algorithm else MESSAGE
        answer = kms.asymmetric_sign(request={"name": name, "data": raw, "data_crc32c": crc32c(raw)})
        assert answer.verified_data_crc32c and not answer.verified_digest_crc32c, answer
    else:
        hash_name = "sha" + algorithm.rsplit("SHA", 1)[-1]
        digest = hashlib.new(hash_name, MESSAGE).digest()
        request = {"name": name, "digest": {hash_name: digest}, "digest_crc32c": crc32c(digest)}
        answer = kms.asymmetric_sign(request=request)
        assert answer.verified_digest_crc32c and not answer.verified_data_crc32c, answer
    assert answer.name == name and answer.signature_crc32c == crc32c(answer.signature), answer
    return answer.signature


def signs_by_each_algorithm(kms):
    for algorithm, key in SITE["keys"].items():
        public, key_of_it = public_key(kms, version(key))
        assert public.algorithm.name == algorithm, public
        signature = sign(kms, algorithm, version(key))
        verify(key_of_it, algorithm, signature)
        wrong = bytearray(signature)
        wrong[-1] ^= 1
        raises(InvalidSignature, lambda: verify(key_of_it, algorithm, bytes(wrong)))


def lists_in_pages(kms):
    keys = list(kms.list_crypto_keys(request={"parent": RING, "page_size": 2}))
    assert [key.name.rsplit("/", 1)[-1] for key in keys] == sorted([*SITE["keys"].values(), "rotated"]), keys
    assert {key.purpose.name for key in keys} == {"ASYMMETRIC_SIGN"}, keys
    parent = f"{RING}/cryptoKeys/rotated"
    every = list(kms.list_crypto_key_versions(request={"parent": parent, "page_size": 1}))
    assert [one.state.name for one in every] == ["ENABLED", "DISABLED", "ENABLED"], every
    enabled = list(kms.list_crypto_key_versions(request={"parent": parent, "filter": "state=ENABLED"}))
    assert [one.name for one in enabled] == [version("rotated", 1), version("rotated", 3)], enabled
    assert kms.get_crypto_key_version(name=version("rotated", 2)).state.name == "DISABLED"
    assert kms.get_crypto_key(name=parent).purpose.name == "ASYMMETRIC_SIGN"


def refuses_as_the_service_does(kms):
    digest = {"sha256": hashlib.sha256(MESSAGE).digest()}
    ask = lambda name, **more: lambda: kms.asymmetric_sign(request={"name": name, "digest": digest, **more})
    p256 = version(SITE["keys"]["EC_SIGN_P256_SHA256"])
    assert "did not match" in raises(exceptions.BadRequest, ask(p256, digest_crc32c=1))
    assert not ask(p256)().verified_digest_crc32c
    raises(exceptions.BadRequest, ask(version(SITE["keys"]["EC_SIGN_P384_SHA384"])))
    assert "DISABLED" in raises(exceptions.BadRequest, ask(version("rotated", 2)))
    raises(exceptions.NotFound, ask(version("rotated", 9)))
    stranger = client(Credentials(token="ya29.of-nobody"))  # once it is refused, the client asks for another, in vain
    raises(RefreshError, lambda: stranger.get_public_key(name=p256))


def takes_each_credential():
    name = version("rotated")
    for credential in SITE["credentials"]:
        credentials = read(credential)
        public_key(client(credentials), name)
        credentials.refresh(Request())
        assert credentials.valid and credentials.token, credential["type"]
    machine = compute_engine.Credentials()
    public_key(client(machine), name)
    assert machine.service_account_email == SITE["email"], machine.service_account_email


def main():
    kms = client(read(SITE["credentials"][0]))
    signs_by_each_algorithm(kms)
    lists_in_pages(kms)
    refuses_as_the_service_does(kms)
    takes_each_credential()
    print("content")


main()
