// The BouncyCastle side of tests/proof/test_bouncycastle.py. One request a line on standard input, words separated by
// blanks, files by name; one answer a line on standard output: "OK" or "FAIL" and what was thrown.

import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.Key;
import java.security.KeyFactory;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.PrivateKey;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.security.interfaces.ECPublicKey;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Collection;
import java.util.List;
import javax.crypto.spec.OAEPParameterSpec;
import javax.crypto.spec.PSource;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.ASN1OctetString;
import org.bouncycastle.asn1.cms.CMSObjectIdentifiers;
import org.bouncycastle.asn1.cms.ContentInfo;
import org.bouncycastle.asn1.pkcs.PKCSObjectIdentifiers;
import org.bouncycastle.asn1.pkcs.PrivateKeyInfo;
import org.bouncycastle.asn1.x509.AlgorithmIdentifier;
import org.bouncycastle.asn1.x509.SubjectPublicKeyInfo;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaCertStore;
import org.bouncycastle.cms.*;
import org.bouncycastle.cms.jcajce.*;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.OutputAEADEncryptor;
import org.bouncycastle.operator.jcajce.*;

public class Peer {
    static final String BC = "BC";

    public static void main(String[] arguments) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = requests.readLine()) != null; ) {
            String answer = "OK";
            try {
                String[] words = line.split(" ");
                switch (words[0]) {
                    case "encrypt": encrypt(words); break;
                    case "decrypt": decrypt(words); break;
                    case "sign": sign(words); break;
                    case "verify": verify(words); break;
                    default: throw new IllegalArgumentException(words[0]);
                }
            } catch (Exception problem) {
                answer = "FAIL " + problem.toString().replace('\n', ' ');
            }
            System.out.println(answer);
            System.out.flush();
        }
    }

    // encrypt OUT IN gcm128|gcm256|cbc256 oaep|pkcs1 CERTIFICATE...
    static void encrypt(String[] words) throws Exception {
        boolean authenticated = words[3].startsWith("gcm");
        CMSAuthEnvelopedDataGenerator authenticating = new CMSAuthEnvelopedDataGenerator();
        CMSEnvelopedDataGenerator enveloping = new CMSEnvelopedDataGenerator();
        for (int at = 5; at < words.length; at++) {
            RecipientInfoGenerator recipient = recipient(certificate(words[at]), words[4]);
            authenticating.addRecipientInfoGenerator(recipient);
            enveloping.addRecipientInfoGenerator(recipient);
        }
        ASN1ObjectIdentifier cipher = words[3].equals("gcm128") ? CMSAlgorithm.AES128_GCM
            : words[3].equals("gcm256") ? CMSAlgorithm.AES256_GCM : CMSAlgorithm.AES256_CBC;
        CMSTypedData content = new CMSProcessableByteArray(read(words[2]));
        org.bouncycastle.operator.OutputEncryptor encryptor =
            new JceCMSContentEncryptorBuilder(cipher).setProvider(BC).build();
        byte[] made = authenticated
            ? authenticating.generate(content, (OutputAEADEncryptor) encryptor).getEncoded()
            : enveloping.generate(content, encryptor).getEncoded();
        Files.write(Path.of(words[1]), made);
    }

    static RecipientInfoGenerator recipient(X509Certificate certificate, String transport) throws Exception {
        if (certificate.getPublicKey() instanceof ECPublicKey) {
            KeyPairGenerator generator = KeyPairGenerator.getInstance("EC", BC);
            generator.initialize(((ECPublicKey) certificate.getPublicKey()).getParams());
            KeyPair ephemeral = generator.generateKeyPair();
            return new JceKeyAgreeRecipientInfoGenerator(CMSAlgorithm.ECDH_SHA256KDF, ephemeral.getPrivate(),
                ephemeral.getPublic(), CMSAlgorithm.AES256_WRAP).addRecipient(certificate).setProvider(BC);
        }
        if (transport.equals("pkcs1")) {
            return new JceKeyTransRecipientInfoGenerator(certificate).setProvider(BC);
        }
        OAEPParameterSpec oaep =
            new OAEPParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, PSource.PSpecified.DEFAULT);
        return new JceKeyTransRecipientInfoGenerator(certificate, new JcaAlgorithmParametersConverter()
            .getAlgorithmIdentifier(PKCSObjectIdentifiers.id_RSAES_OAEP, oaep)).setProvider(BC);
    }

    // decrypt OUT IN KEY CERTIFICATE: by the recipient that names the certificate
    static void decrypt(String[] words) throws Exception {
        byte[] message = read(words[2]);
        PrivateKey key = key(words[3]);
        X509CertificateHolder holder = new X509CertificateHolder(read(words[4]));
        boolean agreed = key.getAlgorithm().startsWith("EC");
        boolean authenticated =
            ContentInfo.getInstance(message).getContentType().equals(CMSObjectIdentifiers.authEnvelopedData);
        RecipientInformationStore store = authenticated
            ? new CMSAuthEnvelopedData(message).getRecipientInfos() : new CMSEnvelopedData(message).getRecipientInfos();
        Recipient recipient = authenticated
            ? (agreed ? new Agreeing(key).setProvider(BC)
                : new JceKeyTransAuthEnvelopedRecipient(key).setProvider(BC))
            : (agreed ? new JceKeyAgreeEnvelopedRecipient(key).setProvider(BC)
                : new JceKeyTransEnvelopedRecipient(key).setProvider(BC));
        for (RecipientInformation information : store.getRecipients()) {
            if (information.getRID().match(holder)) {
                Files.write(Path.of(words[1]), information.getContent(recipient));
                return;
            }
        }
        throw new IllegalArgumentException("no such recipient");
    }

    // What BouncyCastle 1.72 has for EnvelopedData only: key agreement in front of an authenticated cipher.
    static class Agreeing extends JceKeyAgreeRecipient {
        private final PrivateKey key;

        Agreeing(PrivateKey key) {
            super(key);
            this.key = key;
        }

        public RecipientOperator getRecipientOperator(AlgorithmIdentifier wrap, AlgorithmIdentifier cipher,
                SubjectPublicKeyInfo originator, ASN1OctetString material, byte[] wrapped) throws CMSException {
            Key content = extractSecretKey(wrap, cipher, originator, material, wrapped);
            JceKeyTransAuthEnvelopedRecipient opening = new JceKeyTransAuthEnvelopedRecipient(key) {
                protected Key extractSecretKey(AlgorithmIdentifier wrap, AlgorithmIdentifier cipher, byte[] wrapped) {
                    return content;
                }
            };
            opening.setProvider(BC);
            return opening.getRecipientOperator(wrap, cipher, wrapped);
        }
    }

    // sign OUT IN ALGORITHM KEY CERTIFICATE opaque|detached
    static void sign(String[] words) throws Exception {
        X509Certificate certificate = certificate(words[5]);
        CMSSignedDataGenerator generator = new CMSSignedDataGenerator();
        generator.addSignerInfoGenerator(new JcaSimpleSignerInfoGeneratorBuilder().setProvider(BC)
            .build(words[3], key(words[4]), certificate));
        generator.addCertificates(new JcaCertStore(List.of(certificate)));
        CMSSignedData made =
            generator.generate(new CMSProcessableByteArray(read(words[2])), words[6].equals("opaque"));
        Files.write(Path.of(words[1]), made.getEncoded());
    }

    // verify SIGNATURE CONTENT: a detached one
    static void verify(String[] words) throws Exception {
        CMSSignedData signed = new CMSSignedData(new CMSProcessableByteArray(read(words[2])), read(words[1]));
        Collection<SignerInformation> signers = signed.getSignerInfos().getSigners();
        if (signers.size() != 1) {
            throw new IllegalArgumentException(signers.size() + " signers");
        }
        for (SignerInformation signer : signers) {
            Collection<?> matches = signed.getCertificates().getMatches(signer.getSID());
            X509CertificateHolder holder = (X509CertificateHolder) matches.iterator().next();
            if (!signer.verify(new JcaSimpleSignerInfoVerifierBuilder().setProvider(BC).build(holder))) {
                throw new IllegalArgumentException("wrong signature");
            }
        }
    }

    static byte[] read(String name) throws Exception {
        return Files.readAllBytes(Path.of(name));
    }

    static X509Certificate certificate(String name) throws Exception {
        return (X509Certificate) CertificateFactory.getInstance("X.509", BC)
            .generateCertificate(new ByteArrayInputStream(read(name)));
    }

    static PrivateKey key(String name) throws Exception {
        byte[] encoded = read(name);
        String algorithm =
            PrivateKeyInfo.getInstance(encoded).getPrivateKeyAlgorithm().getAlgorithm().getId();
        return KeyFactory.getInstance(algorithm, BC).generatePrivate(new PKCS8EncodedKeySpec(encoded));
    }
}
