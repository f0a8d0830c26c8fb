"""Mail by SMTP: the standard library's client on a worker thread, with headers that nobody can add lines to."""

from __future__ import annotations

import re
import smtplib
import ssl
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import formatdate, make_msgid
from functools import partial
from typing import Literal

import trio

from consensus.errors import Failed, Transient
from node.infra.secret import Secret

UNREACHABLE = "MAIL_UNREACHABLE"
REFUSED = "MAIL_REFUSED"

_TIMEOUT_S = 10.0  # of one step of the conversation,
_WHOLE_S = 45.0  # and of all of it
_THREADS = 2
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
# The HTML standard's e-mail address, in ASCII: no quoting, no comments, no spaces, and so no way to a second header or recipient.
_SUBJECT_CHARS = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

Security = Literal["starttls", "tls", "none"]


def is_address(text: str) -> bool:
    """Whether `text` is one plain mail address."""
    return len(text) <= 254 and _ADDRESS.fullmatch(text) is not None and ".." not in text


class Mail:
    """An SMTP server and whom mails come from. A connection a message: alerts are rare."""

    def __init__(
        self,
        host: str,
        port: int,
        security: Security,
        sender: str,
        *,
        user: str | None = None,
        password: Secret[str] | None = None,
        context: ssl.SSLContext | None = None,
        timeout: float = _TIMEOUT_S,
    ) -> None:
        self._host, self._port, self._security = host, port, security
        self._sender = sender
        self._user, self._password = user, password
        self._context = context or ssl.create_default_context()
        self._timeout = timeout
        self._limiter = trio.CapacityLimiter(_THREADS)

    async def send(self, to: str, subject: str, text: str) -> None:
        """Raises `Failed` when this address cannot be written to, `Transient` when the server cannot be used now."""
        message = compose(self._sender, to, subject, text)
        try:
            with trio.fail_after(_WHOLE_S):
                await trio.to_thread.run_sync(  # an abandoned thread ends by the timeouts of its steps
                    partial(self._deliver, message, to),
                    limiter=self._limiter,
                    abandon_on_cancel=True,  # type: ignore[call-arg]
                )
        except trio.TooSlowError:
            raise Transient(UNREACHABLE, f"no end in {_WHOLE_S:g} s") from None

    def _deliver(self, message: EmailMessage, to: str) -> None:
        try:
            with self._connect() as server:
                if self._security == "starttls":
                    server.starttls(context=self._context)
                if self._user is not None and self._password is not None:
                    server.login(self._user, self._password.reveal())
                server.send_message(message, from_addr=self._sender, to_addrs=[to])
        except smtplib.SMTPRecipientsRefused as error:
            code, said = next(iter(error.recipients.values()), (0, b""))
            raise (Failed(REFUSED, _said(code, said)) if code >= 500 else Transient(UNREACHABLE, _said(code, said))) from None
        except smtplib.SMTPResponseException as error:  # the server's or the operator's fault, and mended without a restart
            raise Transient(UNREACHABLE, _said(error.smtp_code, error.smtp_error)) from None
        except (smtplib.SMTPException, OSError, UnicodeError) as error:  # ssl.SSLError is an OSError
            raise Transient(UNREACHABLE, f"{type(error).__name__}: {str(error)[:200]}") from None

    def _connect(self) -> smtplib.SMTP:
        name = self._sender.rpartition("@")[2] or "localhost"  # else smtplib asks the resolver for ours, without a timeout
        if self._security == "tls":
            return smtplib.SMTP_SSL(self._host, self._port, name, timeout=self._timeout, context=self._context)
        return smtplib.SMTP(self._host, self._port, name, timeout=self._timeout)


def compose(sender: str, to: str, subject: str, text: str) -> EmailMessage:
    """One plain-text message to one recipient. Raises `Failed` when `to` is no address; control characters leave the subject."""
    if not is_address(to):
        raise Failed(REFUSED, "not a mail address")
    message = EmailMessage(policy=SMTP_POLICY)
    domain = sender.rpartition("@")[2] or "localhost"
    try:
        message["From"] = Address(display_name="TriggerX", addr_spec=sender)
        message["To"] = Address(addr_spec=to)
        message["Subject"] = _CONTROL.sub(" ", subject).strip()[:_SUBJECT_CHARS]
        message["Date"] = formatdate(usegmt=True)
        message["Message-ID"] = make_msgid(domain=domain)
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
        message.set_content(text)
    except (MessageError, ValueError) as error:
        raise Failed(REFUSED, str(error)[:200]) from None
    return message


def _said(code: int, words: bytes | str) -> str:
    return f"{code}: {(words.decode(errors='replace') if isinstance(words, bytes) else words)[:200]}"
