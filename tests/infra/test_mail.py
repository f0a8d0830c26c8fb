"""Mail through a real SMTP server: STARTTLS, TLS, log-in, refusals, and headers that nobody can add lines to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from email.policy import default
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trio
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Failed, Transient
from node.infra.mail import Mail, Security, compose, is_address
from node.infra.secret import Secret

FROM, TO = "alerts@example.org", "keeper@example.org"


class Box:
    """What arrived; `refuse` is answered to a recipient."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.envelopes: list[Envelope] = []
        self.encrypted: list[bool] = []
        self.authenticated: list[bool] = []

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        if self.refuse:
            return self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        self.encrypted.append(session.ssl is not None)
        self.authenticated.append(session.authenticated)
        return "250 OK"

    def message(self) -> Message:
        [envelope] = self.envelopes
        assert isinstance(envelope.content, bytes)
        return message_from_bytes(envelope.content, policy=default)


class Certificate:
    """For 127.0.0.1, signed by itself."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = folder / "certificate.pem"
        pem.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(pem)
        self.client = ssl.create_default_context(cafile=str(pem))


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


def _log_in(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"alerts", b"secret")
    return AuthResult(success=right, handled=False)


class _AtAnyPort(Controller):
    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def serving(box: Box, **options: Any) -> Iterator[int]:
    controller = _AtAnyPort(box, hostname="127.0.0.1", port=0, ready_timeout=10, **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


def mail(port: int, security: Security = "none", **options: Any) -> Mail:
    return Mail("127.0.0.1", port, security, FROM, **{"timeout": 5.0, **options})


async def test_a_mail_arrives_with_subject_text_and_sender() -> None:
    box = Box()
    with serving(box) as port:
        await mail(port).send(TO, "TriggerX: Bücher are away", "Since noon.\n.\nWhat to do: nothing – really.")
    [envelope] = box.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == (FROM, [TO])
    assert box.message()["Subject"] == "TriggerX: Bücher are away"
    assert box.message()["From"] == f"TriggerX <{FROM}>"
    assert box.message()["To"] == TO
    assert box.message()["Auto-Submitted"] == "auto-generated"
    assert box.message().get_content().splitlines() == ["Since noon.", ".", "What to do: nothing – really."]


async def test_starttls_encrypts_before_the_log_in(certificate: Certificate) -> None:
    box = Box()
    options = {"tls_context": certificate.server, "require_starttls": True, "authenticator": _log_in, "auth_required": True}
    with serving(box, **options) as port:
        sender = mail(port, "starttls", user="alerts", password=Secret("secret"), context=certificate.client)
        await sender.send(TO, "subject", "text")
        assert (box.encrypted, box.authenticated) == ([True], [True])
        wrong = mail(port, "starttls", user="alerts", password=Secret("wrong"), context=certificate.client)
        with pytest.raises(Transient, match="535") as raised:  # the operator may mend it
            await wrong.send(TO, "subject", "text")
        assert "wrong" not in str(raised.value)


async def test_tls_from_the_first_byte(certificate: Certificate) -> None:
    box = Box()
    with serving(box, ssl_context=certificate.server) as port:
        await mail(port, "tls", context=certificate.client).send(TO, "subject", "text")
    assert len(box.envelopes) == 1


async def test_a_certificate_that_nobody_vouches_for_gets_no_mail(certificate: Certificate) -> None:
    box = Box()
    with serving(box, tls_context=certificate.server) as port, pytest.raises(Transient, match="MAIL_UNREACHABLE"):
        await mail(port, "starttls").send(TO, "subject", "text")
    assert not box.envelopes


async def test_a_server_without_starttls_gets_no_mail_in_the_clear() -> None:
    box = Box()
    with serving(box) as port, pytest.raises(Transient, match="MAIL_UNREACHABLE"):
        await mail(port, "starttls", user="alerts", password=Secret("secret")).send(TO, "subject", "text")
    assert not box.envelopes


@pytest.mark.parametrize(("said", "kind"), [("550 no such user", Failed), ("450 try again later", Transient)])
async def test_a_refused_recipient_is_given_up_or_tried_again_as_the_server_says(said: str, kind: type[Exception]) -> None:
    with serving(Box(refuse=said)) as port, pytest.raises(kind, match=said[:3]):
        await mail(port).send(TO, "subject", "text")


async def test_a_server_that_is_away_or_silent_is_tried_again_later() -> None:
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = silent[0].socket.getsockname()[1]
    with pytest.raises(Transient, match="MAIL_UNREACHABLE"):
        await mail(port, timeout=0.2).send(TO, "subject", "text")
    await silent[0].aclose()
    with pytest.raises(Transient, match="MAIL_UNREACHABLE"):
        await mail(port).send(TO, "subject", "text")


async def test_one_who_waits_for_mail_can_be_cancelled() -> None:
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.move_on_after(0.1) as waited:
        await mail(silent[0].socket.getsockname()[1], timeout=1.0).send(TO, "subject", "text")
    assert waited.cancelled_caught
    await silent[0].aclose()


@pytest.mark.parametrize(
    "address",
    [
        "", "nobody", "a@b\r\nBcc: all@example.org", "a@b,c@d", "a@b c@d", "<a@b>", "a@b>", "A <a@b.org>", "a@", "@b", "a@-b.org",
        "a@b.org\n", "a@b..org", '"a b"@c.org', "a@b.org;c@d.org", "ä@b.org", "a" * 65 + "@b.org", "a@" + "b" * 260, "a@[::1]",
    ],
)  # fmt: skip
async def test_what_is_no_plain_address_is_refused_before_anything_is_dialled(address: str) -> None:
    assert not is_address(address)
    with pytest.raises(Failed, match="MAIL_REFUSED"):
        await mail(1).send(address, "subject", "text")


@given(subject=st.text(max_size=300), text=st.text(max_size=500))
def test_no_subject_or_text_adds_a_header(subject: str, text: str) -> None:
    try:
        composed = compose(FROM, TO, subject, text).as_bytes()
    except Failed:  # half a surrogate pair is no text
        return
    headers = message_from_bytes(composed, policy=default).keys()
    assert sorted(headers) == sorted(
        [
            "From",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "Auto-Submitted",
            "Content-Type",
            "Content-Transfer-Encoding",
            "MIME-Version",
        ]
    )


@pytest.mark.parametrize(
    "evil", ["\r\nBcc: all@example.org", "\nBcc: x@y", "\rBcc: x@y", "\x00", "\u2028Bcc: x@y", "\x85Bcc: x@y"]
)
def test_a_jobs_title_cannot_smuggle_a_recipient_in(evil: str) -> None:
    message = message_from_bytes(compose(FROM, TO, f"job {evil} fails", "text").as_bytes(), policy=default)
    assert message["Bcc"] is None
    assert message["Subject"].startswith("job ")
