"""Why a TLS connection failed, in words for a person."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from edge_cl.sync.broker import Broker

_TIMES = {9: "is not valid yet", 10: "has expired"}
_NAMES = (62, 64)
_AUTHORITIES = (2, 18, 19, 20, 21)
"""OpenSSL's codes of what is wrong with the other side's certificate."""
_OURS = ("CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED", "CERTIFICATE_UNKNOWN", "BAD_CERTIFICATE", "UNKNOWN_CA")
"""Ends of what a broker says of the device's certificate."""


def explain(error: Exception, broker: Broker) -> str:
    """What went wrong with the broker, and what to do when TLS was the cause."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}; {_advise(error.verify_code, broker.host)}"
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    if broker.tls and isinstance(error, ConnectionResetError | ssl.SSLEOFError):
        return f"{error}; is there TLS on this port?"
    if not isinstance(reason, str):
        return str(error)
    if reason.endswith("CERTIFICATE_REQUIRED"):
        return f"{reason}; the broker asks for a certificate: set mqtt.cert_file and mqtt.key_file"
    if reason.endswith(_OURS):
        return f"{reason}; the broker does not accept this device's certificate: renew mqtt.cert_file"
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return f"{reason}; there is no TLS on this port: take the port for TLS, or write mqtt:// without it"
    return str(error)


def _advise(code: int, host: str) -> str:
    if code in _TIMES:
        now = datetime.now(UTC).isoformat(" ", "minutes").removesuffix("+00:00")
        return (
            f"by this device's clock, which reads {now} UTC, the certificate {_TIMES[code]}: "
            "if the clock is wrong set it, else renew the broker's certificate"
        )
    if code in _NAMES:
        return f"the certificate is not for {host}: write the name in it into mqtt.url"
    if code in _AUTHORITIES:
        return "no authority that this device believes has signed it: is mqtt.ca_file the broker's authority?"
    return "renew the broker's certificate"
