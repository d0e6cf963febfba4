//! Private keys in hardware security modules, by PKCS#11.
