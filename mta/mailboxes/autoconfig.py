"""Mozilla's autoconfiguration file, `config-v1.1.xml` (draft-ietf-mailmaint-autoconfig §4): Thunderbird, K-9 and
others ask `autoconfig.<domain>` or the domain itself for it.

It is the same for everybody: the address stands as a placeholder that the program fills in, so the answer cannot tell
one mailbox from another. The format knows no LDAP address book (Apple's profile does).
"""

from __future__ import annotations

from lxml import etree

from mta.mailboxes.services import ClientServices, Security, Service

_SOCKET = {Security.TLS: "SSL", Security.STARTTLS: "STARTTLS"}


def autoconfig(services: ClientServices) -> bytes:
    """The file, UTF-8."""
    root = etree.Element("clientConfig", version="1.1")
    provider = etree.SubElement(root, "emailProvider", id=services.domains[0])
    for domain in services.domains:
        _say(provider, "domain", domain)
    _say(provider, "displayName", services.name)
    _say(provider, "displayShortName", services.name)
    _server(provider, "incomingServer", "imap", services.imap, services)
    for service in services.submission:
        _server(provider, "outgoingServer", "smtp", service, services)
    page = etree.SubElement(provider, "documentation", url=services.link())
    _say(page, "descr", "Configurer votre messagerie", lang="fr")
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8", pretty_print=True)


def _server(provider: etree._Element, element: str, kind: str, service: Service, services: ClientServices) -> None:
    server = etree.SubElement(provider, element, type=kind)
    _say(server, "hostname", service.host)
    _say(server, "port", str(service.port))
    _say(server, "socketType", _SOCKET[service.security])
    _say(server, "username", "%EMAILADDRESS%")
    # In the order of preference (§4.2.4): programs know the endpoints of a few large providers only, not of ours.
    _say(server, "authentication", "password-cleartext")
    if services.tokens:
        _say(server, "authentication", "OAuth2")


def _say(parent: etree._Element, tag: str, text: str, lang: str = "") -> None:
    element = etree.SubElement(parent, tag)
    element.text = text
    if lang:
        element.set("lang", lang)
