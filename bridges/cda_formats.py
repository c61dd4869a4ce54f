"""XDS formatCode of a CDA document: the French tables ASS_A11 (templateId to formatCode) and the level 1 codes.

Codes of the French health nomenclatures (NOS), release of 29 June 2026; ASS_A11 is OID 1.2.250.1.213.1.1.4.331.
"""

from __future__ import annotations

from collections.abc import Iterable

_ANS = "1.2.250.1.213.1.1.1."
_ASIP = "urn:asip:ci-sis:"

BY_TEMPLATE: dict[str, str] = {
    **{
        _ANS + arc: _ASIP + name
        for arc, name in {
            "2.1.1": "avk:2009",
            "2.1.2": "tap:2009",
            "2.1.3": "dci:2009",
            "2.1.4": "psc:2009",
            "2.1.5": "ppv:2009",
            "5.1": "cse-cs8:2017",
            "5.2": "cse-cs9:2017",
            "5.3": "cse-cs24:2017",
            "8": "frcp:2011",
            "9": "idap:2011",
            "10": "cva:2017",
            "12.1": "obp-sap:2023",
            "12.2": "obp-snm:2023",
            "12.3": "obp-sne:2023",
            "12.4": "obp-scm:2023",
            "12.5": "obp-sem:2023",
            "13": "vsm:2012",
            "15": "aunv:2013",
            "16": "eunv:2013",
            "17": "sunv:2013",
            "18": "crrtn:2013",
            "20": "pps-paerpa:2017",
            "21": "ldl-ees:2017",
            "22": "dlu:2015",
            "23": "fludt:2017",
            "24": "fludr:2017",
            "25": "pavc:2016",
            "26": "pps-cancer:2017",
            "27": "d2lm-fin:2017",
            "28": "d2lm-fidd:2017",
            "29": "ldl-ses:2017",
            "30": "sdm-mr:2017",
            "32": "crgm:2018",
            "36": "hr:2019",
            "37": "vac:2019",
            "38": "tlm-da:2020",
            "40": "cr-anest:2020",
            "41": "cr-cpa:2020",
            "46": "vac-note:2021",
            "48": "dlu-dlu-dom:2022",
            "49": "dlu-fludt-dom:2022",
            "50": "dlu-fludr-dom:2022",
            "56": "ppp:2023",
            "58": "export-dui:2023",
        }.items()
    },
    _ANS + "5.4": "urn:ans:ci-sis:cse-mde:2023",
    _ANS + "47": "urn:ans:ci-sis:img-da:2022",
    _ANS + "52": "urn:ans:ci-sis:bio-ep-bio:2022",
    _ANS + "39": "urn:ihe:pharm:pre:2010",
    _ANS + "42": "urn:ihe:eyecare:geneyeevalcn:2014",
    _ANS + "43": "urn:ihe:eyecare:geneyeevalcn:2014",
    _ANS + "44": "urn:ihe:eyecare:geneyeevalcn:2014",
    _ANS + "45": "urn:ihe:rad:CDA:ImagingReportStructuredHeadings:2013",
    _ANS + "51": "urn:ihe:pcc:ips:2020",
    _ANS + "54": "urn:ihe:pharm:dis:2010",
    _ANS + "55": "urn:ihe:lab:xd-lab:2008",
    _ANS + "57": "urn:ihe:palm:apsr:2016",
    "1.3.6.1.4.1.19376.1.3.3": "urn:ihe:lab:xd-lab:2008",
}

_BY_MEDIA_TYPE = {
    "application/pdf": "urn:ihe:iti:xds-sd:pdf:2008",
    "text/plain": "urn:ihe:iti:xds-sd:text:2008",
    "image/jpeg": "urn:ihe:iti-fr:xds-sd:jpeg:2010",
    "image/tiff": "urn:ihe:iti-fr:xds-sd:tiff:2010",
    "application/rtf": "urn:ihe:iti-fr:xds-sd:rtf:2010",
    "text/rtf": "urn:ihe:iti-fr:xds-sd:rtf:2010",
}


def structured_format(templates: Iterable[str]) -> str:
    """formatCode of a structured document: the last of its templateId roots the table knows; empty when none."""
    known = [BY_TEMPLATE[root] for root in templates if root in BY_TEMPLATE]
    return known[-1] if known else ""


def unstructured_format(media_type: str) -> str:
    """formatCode of a level 1 document from its nonXMLBody's media type; empty when the table has none."""
    return _BY_MEDIA_TYPE.get(media_type.strip().lower(), "")
