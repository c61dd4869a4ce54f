"""French labels and classes of the codes a report carries: dated extracts of the national terminologies.

A label the document itself gives always wins: these tables serve documents that name a code without its label, and the
metadata that is derived from a code (classCode). An unknown code never stops a mail.
"""

from __future__ import annotations

TABLES_DATE = "2022-10-28"
"""Date of the extracts: JDV_J07 of 2022-09-30, JDV_J02 of 2022-10-28, TRE_A03 of 2023-12-15 (unchanged since)."""

LOINC = "2.16.840.1.113883.6.1"
TRE_A05 = "1.2.250.1.213.1.1.4.12"
"""TRE_A05-TypeDocComplementaire."""
CONFIDENTIALITY = "2.16.840.1.113883.5.25"
VISIBILITY = "1.2.250.1.213.1.1.4.13"
"""TRE_A07-StatutVisibiliteDocument."""
CLASS = "1.2.250.1.213.1.1.4.1"
"""TRE_A03-ClasseDocument."""
FACILITY = "1.2.250.1.71.4.2.4"
"""TRE_R02-SecteurActivite."""
PRACTICE_SETTING = "1.2.250.1.213.1.1.4.9"
"""TRE_A01-CadreExercice."""
SPECIALTY = "1.2.250.1.213.1.1.4.5"
"""TRE_A02-ProfessionSavFaire: G15, G16 and their specialties."""
NON_PROFESSIONAL = "1.2.250.1.213.1.1.4.6"
"""TRE_A00-ProducteurDocNonPS: devices, secretariats and systems that author documents."""

TYPE_LABELS = {
    "11369-6": "Historique des vaccinations",
    "11488-4": "CR ou fiche de consultation ou de visite",
    "11490-0": "Lettre de liaison à la sortie d'un établissement de soins",
    "11502-2": "CR d'examens biologiques",
    "11505-5": "CR d'acte thérapeutique (autre)",
    "11506-3": "CR ou fiche de suivi de soins par auxiliaire médical",
    "11526-1": "CR d'anatomie et de cytologie pathologiques",
    "15507-7": "CR de passage aux urgences",
    "15508-5": "CR d'accouchement",
    "18748-4": "CR d'imagerie médicale",
    "18761-7": "Note de transfert (dont lettre de liaison à l'entrée en établissement de soins)",
    "18776-5": "Plan personnalisé de soins",
    "34112-3": "CR hospitalier (séjour)",
    "34133-9": "Synthèse d'épisode de soins",
    "34749-2": "CR de consultation pré-anesthésique",
    "34794-8": "CR de réunion de concertation pluridisciplinaire",
    "34842-5": "Grille d'évaluation médico-social",
    "34874-8": "CR opératoire",
    "47420-5": "CR de bilan fonctionnel (par auxiliaire médical)",
    "51969-4": "CR de génétique moléculaire",
    "52040-3": "Document encapsulant une image d'illustration non DICOM",
    "55115-0": "Demande d'actes d'imagerie",
    "56445-0": "Bilan médicamenteux (Officine)",
    "57828-6": "Prescription (autre)",
    "57832-8": "Prescription de soins",
    "57833-6": "Prescription de produits de santé",
    "60591-5": "Synthèse du dossier médical",
    "60593-1": "Dispensation médicamenteuse",
    "61357-0": "Intervention pharmaceutique",
    "67851-6": "CR d'admission",
    "68599-0": "Synthèse psychiatrique",
    "68817-6": "Bilan de santé et de prévention de l'enfant",
    "70004-7": "CR d'acte diagnostique (autre)",
    "74207-2": "Dossier de liaison d'urgence",
    "75468-9": "Renouvellement ordonnance par pharmacien correspondant",
    "75482-0": "CR d'acte thérapeutique à visée préventive",
    "75492-9": "CR d'acte diagnostique à visée préventive ou de dépistage",
    "75496-0": "Demande d'acte de télémédecine",
    "77436-4": "CR d'anesthésie",
    "77604-7": "Planification thérapeutique",
    "78513-9": "CR de consultation en ophtalmologie",
    "78601-2": "CR d'entretien pharmaceutique",
    "80565-5": "CR d'administration de médicaments",
    "80788-3": "Projet personnalisé d'accompagnement",
    "80820-4": "Formulaire de conciliation médicamenteuse (Hôpital)",
    "83836-7": "Schéma dentaire",
    "83901-9": "Bilan psychologique",
    "83981-1": "Lettre de liaison à la sortie d'une structure sociale ou médico-sociale",
    "85208-7": "CR de télémédecine",
    "87273-9": "Note de vaccination",
    "88348-8": "Lettre de liaison d'entrée en structure sociale ou médico-sociale",
    "89601-9": "Certificat médical",
    "93024-8": "CR de consultation pharmaceutique",
    "96173-0": "Attestation de dépistage",
    "96349-6": "Lettre d'adressage",
    "96874-3": "COVID-19 Attestation de vaccination",
    "ATTEST-ASS-COMPL": "Attestation assurance complémentaire",
    "ATTEST-HEBGT": "Attestation d'hébergement",
    "ATTEST-RESID": "Attestation de résidence",
    "BIL_AUTO": "CR de bilan d'évaluation de la perte d'autonomie",
    "CERT_DECL": "Certificat, déclaration",
    "DISP_AUT": "Dispensation (autre)",
    "DOCPAT01": "Synthèse déposée par le patient",
    "DOCPAT02": "Traitement ou document de soins déposé par le patient",
    "DOCPAT03": "CR déposé par le patient",
    "DOCPAT04": "Imagerie déposée par le patient",
    "DOCPAT05": "CR de biologie déposé par le patient",
    "DOCPAT06": "CR de prévention déposé par le patient",
    "DOCPAT07": "Certificat déposé par le patient",
    "DOCPAT08": "Profil médical Mon espace santé",
    "DOCPAT09": "Document administratif déposé par le patient",
    "EXPPAT_1": "Volontés et droits du patient",
    "EXPPAT_2": "Autre document du patient",
    "EXPPAT_3": "Directives anticipées",
    "IMG-KOS": "Référence d'objets d'un examen d'imagerie",
    "PRESC-BIO": "Prescription d'actes de biologie médicale",
    "PRESC-INF": "Prescription d'actes infirmiers",
    "PRESC-KINE": "Prescription d'actes de kinésithérapie",
    "PRESC-ORTHOPHO": "Prescription d'actes d'orthophonie",
    "PRESC-ORTHOPTIE": "Prescription d'actes d'orthoptie",
    "PRESC-PEDI": "Prescription d'actes de pédicurie",
    "PROT_ALD": "Protocole de soins ALD",
    "REMB": "Données de remboursement",
    "SYNTH": "Synthèse",
}
"""JDV_J07-XdsTypeCode-CISIS."""

CLASS_LABELS = {
    "10": "Compte rendu",
    "11": "Synthèse",
    "31": "Imagerie médicale",
    "42": "Prescription",
    "43": "Dispensation",
    "44": "Plan de soins, protocole de soins",
    "45": "Traitement administré",
    "52": "Certificat, déclaration",
    "60": "Données de remboursement",
    "90": "Autres documents déposés par le patient",
    "95": "Document de gestion",
}
"""TRE_A03-ClasseDocument."""

_CLASS_MEMBERS = {
    "11": "11369-6 34133-9 56445-0 60591-5 68599-0 68817-6 74207-2 83901-9 DOCPAT01 DOCPAT08 SYNTH",
    "31": "18748-4 52040-3 DOCPAT04 IMG-KOS",
    "42": (
        "55115-0 57828-6 57832-8 57833-6 75468-9 75496-0 PRESC-BIO PRESC-INF PRESC-KINE PRESC-ORTHOPHO "
        "PRESC-ORTHOPTIE PRESC-PEDI"
    ),
    "43": "60593-1 61357-0 DISP_AUT",
    "44": "18776-5 77604-7 80788-3 DOCPAT02 PROT_ALD",
    "45": "80565-5 87273-9",
    "52": "89601-9 96173-0 96874-3 CERT_DECL DOCPAT07",
    "60": "REMB",
    "90": "EXPPAT_1 EXPPAT_2 EXPPAT_3",
    "95": "ATTEST-ASS-COMPL ATTEST-HEBGT ATTEST-RESID DOCPAT09",
}
_CLASS_OF_TYPE = {code: class_code for class_code, codes in _CLASS_MEMBERS.items() for code in codes.split()}


def type_label(code: str, given: str = "") -> str:
    """The document's own label of its type, else the table's, else the code itself."""
    return given.strip() or TYPE_LABELS.get(code, "") or code


def class_of(type_code: str) -> tuple[str, str]:
    """(classCode, label) of a typeCode, after the meaning of ASS_X04; `10` Compte rendu when the type is unknown."""
    code = _CLASS_OF_TYPE.get(type_code, "10")
    return code, CLASS_LABELS[code]


CONFIDENTIALITY_LABELS = {"N": "Normal", "R": "Restreint", "V": "Très restreint"}

VISIBILITY_LABELS = {
    "MASQUE_PS": "Masqué aux professionnels de santé",
    "INVISIBLE_PATIENT": "Non visible par le patient",
    "INVISIBLE_REPRESENTANTS_LEGAUX": "Non visible par les représentants légaux du patient",
}

FACILITY_LABELS = {
    "SA01": "Etablissement public de santé",
    "SA02": "Hôpital militaire du Service de santé des armées",
    "SA03": "Etablissement privé PSPH",
    "SA04": "Etablissement privé non PSPH",
    "SA05": "Centre de santé",
    "SA07": "Cabinet individuel",
    "SA08": "Cabinet de groupe",
    "SA09": "Exercice en société",
    "SA15": "PMI et Planification familiale",
    "SA16": "Etablissement pour personnes handicapées",
    "SA17": "Etablissement pour personnes âgées",
    "SA21": "Etablissement d'hébergement et de réadaptation",
    "SA24": "Organisme de sécurité sociale",
    "SA25": "Laboratoire de biologie médicale",
    "SA29": "Laboratoire d'analyses et de biologie médicale",
    "SA30": "Autre établissement sanitaire",
    "SA33": "Pharmacie d'officine",
    "SA34": "Centre de dialyse",
    "SA36": "Centre anti-cancer",
    "SA37": "Centre de transfusion sanguine",
    "SA41": "Autre établissement du domaine social ou médico-social",
    "SA52": "Maison de santé ou Pôle de santé",
    "SA54": "Centre de dépistage et de prévention",
    "SA59": "Laboratoire de biologie médicale hors catégorie standard",
}
"""JDV_J02-XdsHealthcareFacilityTypeCode-CISIS."""

PRACTICE_SETTING_LABELS = {
    "AMBULATOIRE": "Ambulatoire",
    "AMO": "Organisme d'assurance maladie obligatoire",
    "DEPISTAGE": "Dépistage",
    "ESSMS": "Etablissement social ou médico-social",
    "ETABLISSEMENT": "Etablissement de santé",
    "EXP_PATIENT": "Expression personnelle du patient",
    "HAD": "Hospitalisation à domicile",
    "MAD": "Maintien à domicile",
    "PALLIATIF": "Soins palliatifs",
    "SAD": "Soins à domicile",
    "SAMU_SMUR": "SAMU, SMUR",
    "SNR": "Système numérique référencé",
}
"""JDV_J04-XdsPracticeSettingCode-CISIS."""

PROFESSION_LABELS = {
    "G15_10": "Médecin",
    "G15_21": "Pharmacien",
    "G15_26": "Audioprothésiste",
    "G15_28": "Opticien-lunetier",
    "G15_40": "Chirurgien-dentiste",
    "G15_50": "Sage-femme",
    "G15_60": "Infirmier",
    "G15_70": "Masseur-kinésithérapeute",
    "G15_80": "Pédicure-podologue",
    "G15_86": "Technicien de laboratoire médical",
    "G15_91": "Orthophoniste",
    "G15_92": "Orthoptiste",
    "G15_94": "Ergothérapeute",
    "G15_95": "Diététicien",
    "G15_96": "Psychomotricien",
    "G15_98": "Manipulateur ERM",
    "DISPOSITIF": "Dispositif médical",
    "SECRETARIAT_MEDICAL": "Secrétariat médical",
}
"""TRE_G15-ProfessionSante, without the specialty that may follow the slash, and authors who are no professionals."""


def profession_label(specialty: str) -> str:
    """`Médecin` for `G15_10/SM03`; empty when unknown."""
    return PROFESSION_LABELS.get(specialty.partition("/")[0], "")


CONTENT_TYPES = "1.2.250.1.213.2.2"
"""TRE_R209-TypeActivite."""
CONTENT_TYPE_LABELS = {
    "03": "Hospitalisation complète (non compris hospitalisation de semaine)",
    "07": "Consultations soins externes",
    "19": "Traitement et cure ambulatoire",
    "97": "Type d'activité indifférencié",
}
"""JDV_J03-XdsContentTypeCode-CISIS of 2026-02-23, the codes PV1-2 maps to."""

INTERPRETATION_LABELS = {
    "HH": "CRITIQUE, très haut",
    "LL": "CRITIQUE, très bas",
    "AA": "CRITIQUE, anormal",
    "H": "haut",
    "HU": "nettement haut",
    "HX": "au-dessus du seuil",
    ">": "au-dessus du mesurable",
    "L": "bas",
    "LU": "nettement bas",
    "LX": "au-dessous du seuil",
    "<": "au-dessous du mesurable",
    "A": "anormal",
    "W": "moins bon",
    "R": "résistant",
    "I": "intermédiaire",
    "S": "sensible",
    "POS": "positif",
    "NEG": "négatif",
    "DET": "détecté",
    "ND": "non détecté",
    "IND": "indéterminé",
}
"""HL7 ObservationInterpretation (2.16.840.1.113883.5.83), in the reader's words; N and unknown codes have none."""

FINDING_LABELS = {
    "body-truncated": "Le texte d'accompagnement de l'expéditeur est arrivé tronqué : il n'est pas reproduit ici.",
    "pdf-unreadable": "Le PDF contenu dans le document est illisible : le PDF joint a été composé par la messagerie.",
    "parent-contradicts-set": (
        "Attention : le document annoncé comme remplacé n'appartient pas à la même série que celui-ci. "
        "Vérifiez avant de classer."
    ),
    "results-cut": "Le document contient trop de résultats : le texte et le PDF joint n'en reprennent que le début.",
}
"""Findings a professional should know about; the others concern machines."""
