"""Every refusal of every room, by code; importing this fails when two rooms declare the same code."""

from bridges import (
    dropfolder,
    letters,
    plain_mail_refusals,
    receipts_refusals,
    routing,
    screening_refusals,
    xdm_refusals,
)
from bridges import refusals as bridges_refusals
from bridges.dossier import refusals as dossier_refusals
from directory import refusals as directory_refusals
from mta import follow_up_refusals, quarantine_refusals, queue_refusals
from mta import refusals as mta_refusals
from mta.mailboxes import refusals as mailbox_refusals
from mta.mailboxes import serving_refusals
from smime import refusals as smime_refusals
from trust import catalogue as trust_catalogue
from trust import pki_catalogue
from trust.refusals import join_catalogues

CATALOGUE = join_catalogues(
    (
        trust_catalogue.CATALOGUE,
        pki_catalogue.CATALOGUE,
        smime_refusals.CATALOGUE,
        directory_refusals.CATALOGUE,
        mta_refusals.CATALOGUE,
        mailbox_refusals.CATALOGUE,
        quarantine_refusals.CATALOGUE,
        queue_refusals.CATALOGUE,
        follow_up_refusals.CATALOGUE,
        serving_refusals.CATALOGUE,
        bridges_refusals.CATALOGUE,
        routing.CATALOGUE,
        xdm_refusals.CATALOGUE,
        receipts_refusals.CATALOGUE,
        screening_refusals.CATALOGUE,
        plain_mail_refusals.CATALOGUE,
        letters.CATALOGUE,
        dropfolder.CATALOGUE,
        dossier_refusals.CATALOGUE,
    )
)
