"""Outlook's autodiscover in its plain form ([MS-OXDSCLI] §2.2.3, §3.1): a small XML document is posted, IMAP and SMTP
settings come back.

The request is a stranger's: at most 16 KB, no DOCTYPE, nothing fetched. Any address of our domains gets the same answer
with itself as login name; every other one, and what is no request, the same error.
"""

from __future__ import annotations

from typing import Any, cast

from lxml import etree

from mta.mailboxes.services import ClientServices, Security, Service

MAX_REQUEST = 16 * 1024
_ANSWER: Any = {None: "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"}
_MAIL = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"
_ENCRYPTION = {Security.TLS: "SSL", Security.STARTTLS: "TLS"}


def autodiscover(request: bytes, services: ClientServices) -> bytes:
    """The answer, UTF-8. Never raises on bad input."""
    address = services.our_address(_asked_for(request))
    root = etree.Element("Autodiscover", nsmap=_ANSWER)
    if not address:
        response = etree.SubElement(root, "Response")
        error = etree.SubElement(response, "Error", Time="00:00:00.0000000", Id="0")
        _say(error, "ErrorCode", "600")
        _say(error, "Message", "Invalid Request")
        etree.SubElement(error, "DebugData")
        return _written(root)
    response = etree.SubElement(root, f"{{{_MAIL}}}Response", nsmap=cast("Any", {None: _MAIL}))
    account = etree.SubElement(response, f"{{{_MAIL}}}Account")
    for tag, text in (("AccountType", "email"), ("Action", "settings")):
        _say(account, f"{{{_MAIL}}}{tag}", text)
    _protocol(account, "IMAP", services.imap, address)
    _protocol(account, "SMTP", services.submission[0], address)
    return _written(root)


def autodiscover_redirection(services: ClientServices) -> dict[str, str]:
    """What Autodiscover v2 (JSON) answers: where the XML form is."""
    return {"Protocol": "AutodiscoverV1", "Url": f"{services.link()}autodiscover/autodiscover.xml"}


def _asked_for(request: bytes) -> str:
    """The address in the request; empty when there is none or the request is none."""
    if len(request) > MAX_REQUEST:
        return ""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(request, parser)
    except (etree.XMLSyntaxError, ValueError):
        return ""
    information: Any = root.getroottree().docinfo
    if information.doctype:
        return ""
    found = root.xpath("string(//*[local-name()='EMailAddress'])")
    return str(found)


def _protocol(account: etree._Element, kind: str, service: Service, address: str) -> None:
    protocol = etree.SubElement(account, f"{{{_MAIL}}}Protocol")
    for tag, text in (
        ("Type", kind),
        ("Server", service.host),
        ("Port", str(service.port)),
        ("DomainRequired", "off"),
        ("LoginName", address),
        ("SPA", "off"),
        ("SSL", "on"),
        ("Encryption", _ENCRYPTION[service.security]),
        ("AuthRequired", "on"),
    ):
        _say(protocol, f"{{{_MAIL}}}{tag}", text)
    if kind == "SMTP":
        _say(protocol, f"{{{_MAIL}}}UsePOPAuth", "on")
        _say(protocol, f"{{{_MAIL}}}SMTPLast", "off")


def _say(parent: etree._Element, tag: str, text: str) -> None:
    etree.SubElement(parent, tag).text = text


def _written(root: etree._Element) -> bytes:
    return etree.tostring(root, xml_declaration=True, encoding="utf-8", pretty_print=True)
