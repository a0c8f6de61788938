"""TCP: the token, and why an encrypted connection to a server that listens fails. grpc does not say it."""

from __future__ import annotations

import os
import socket

from pagefold_proto.addresses import Address

_SECONDS = 2.0


def checked_token(token: str) -> str:
    """A bearer token without white space around it; empty: none.

    Raises:
        ValueError: a header cannot carry it.
    """
    token = token.strip()
    if not all(" " <= character <= "~" for character in token):
        raise ValueError("the token cannot be sent: it may have printable ASCII only, and has a line break or the like")
    return token


def why_not(address: Address, ca: str | os.PathLike[str] | None) -> str:
    """Why TLS keeps a client from a TCP address; empty: no server listens, or TLS is not the reason.

    Args:
        address: the server's.
        ca: file with the certificate that the server's must be signed with; None: the client uses no encryption.
    """
    if address.scheme != "tcp":
        return ""
    try:
        import ssl

        context = ssl.create_default_context(cafile=ca)
    except ImportError:
        return ""
    except OSError as error:  # ssl.SSLError is one
        return f"{os.fspath(ca or '')} holds no certificate (PEM): {error.args[-1]}"
    if ca is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address.host, address.port), _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            return "" if ca is not None else "it speaks TLS, and wants the certificate that its own is signed with"
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not one that {os.fspath(ca or '')} vouches for: {error.verify_message}"
    except ssl.SSLError:
        return "it does not speak TLS, so no certificate can be checked" if ca is not None else ""
    except OSError:
        return ""
