"""The files of one broker's session: certificates and the password, read when a session begins. BadInput on each."""

from __future__ import annotations

import ssl
from pathlib import Path

from controller.errors import BadInput
from controller.files import open_regular, read_file
from controller.settings import MqttSettings

PASSWORD_BYTES_MAX = 65_535  # what MQTT can carry


def tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """TLS as the settings ask: server checked against `ca_file`, own certificate if given; BadInput on files."""
    if settings.ca_file is None and settings.cert_file is None:
        return None
    if (settings.cert_file is None) != (settings.key_file is None):
        raise BadInput("mqtt: cert_file and key_file belong together; give both or none")
    files = [f for f in (settings.ca_file, settings.cert_file, settings.key_file) if f is not None]
    try:
        for file in files:
            open_regular(Path(file)).close()
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"mqtt: cannot use the TLS files {', '.join(files)}: {error}") from None
    return context


def read_password(settings: MqttSettings) -> str | None:
    """The broker password from its file, read anew for each session so that it can be rotated."""
    if settings.password_file is None:
        return None
    try:
        raw = read_file(Path(settings.password_file), bytes_max=PASSWORD_BYTES_MAX)
        return raw.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError:
        raise BadInput(f"mqtt.password_file: {settings.password_file}: not UTF-8 text") from None
    except OSError as error:
        raise BadInput(f"mqtt.password_file: {settings.password_file}: {error.strerror or error}") from None
