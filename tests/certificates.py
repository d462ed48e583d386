"""A certificate authority for tests, and what it signs, as PEM files."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates; its own is `ca_file`."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.ca_file = folder / "ca.crt"
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._begin(self._name, self._key).add_extension(constraints, critical=True)
        self._write(self.ca_file, certificate.sign(self._key, hashes.SHA256()))

    def issue(
        self,
        common_name: str,
        file_name: str,
        *,
        days: int = 1,
        from_days: int = -10,
        host: str = "127.0.0.1",
    ) -> tuple[Path, Path]:
        """A certificate and its key; valid from and until so many days from now, on `host` for a broker."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            self._begin(_name(common_name), key, days, from_days)
            .add_extension(names, critical=False)
            .add_extension(usage, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        cert_file, key_file = self._folder / f"{file_name}.crt", self._folder / f"{file_name}.key"
        self._write(cert_file, certificate)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert_file, key_file

    def revoke(self, *cert_files: Path) -> Path:
        """A list of certificates that count no more."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now - DAY).next_update(now + DAY)
        for file in cert_files:
            number = x509.load_pem_x509_certificate(file.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        crl_file = self._folder / "revoked.crl"
        crl = builder.sign(self._key, hashes.SHA256())
        crl_file.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return crl_file

    def _begin(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1, from_days: int = -10
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + from_days * DAY)
            .not_valid_after(now + days * DAY)
        )

    def _write(self, file: Path, certificate: x509.Certificate) -> None:
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
