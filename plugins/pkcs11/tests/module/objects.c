// The functions on objects: their handles, what is found, and what their attributes say.
#include "module.h"

#include <string.h>

// ---- Handles ------------------------------------------------------------------------------------------------------
//
// SoftHSM2's handle is in the lower half; above it, how often the token's handles were forgotten, and the session where
// they are good in their own only.

#define FORGOTTEN 0xfffu
#define OWNER 0xfffffu

static CK_OBJECT_HANDLE mark(const struct call *call) {
    CK_OBJECT_HANDLE owner = settings.objects_of_session ? call->session->number & OWNER : 0;
    return owner << 44 | (CK_OBJECT_HANDLE)(call->token->forgotten & FORGOTTEN) << 32;
}

CK_OBJECT_HANDLE shown(const struct call *call, CK_OBJECT_HANDLE real) {
    return mark(call) | real;
}

CK_RV real_object(const struct call *call, CK_OBJECT_HANDLE handle, CK_OBJECT_HANDLE *real) {
    *real = handle & UINT32_MAX;
    return (handle & ~(CK_OBJECT_HANDLE)UINT32_MAX) == mark(call) ? CKR_OK : call->token->stale;
}

// ---- What is found ------------------------------------------------------------------------------------------------

static bool is_public_key(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object) {
    CK_OBJECT_CLASS class = 0;
    CK_ATTRIBUTE attribute = { CKA_CLASS, &class, sizeof class };
    return softhsm->C_GetAttributeValue(session, object, &attribute, 1) == CKR_OK && class == CKO_PUBLIC_KEY;
}

static CK_ULONG keep(const struct call *call, CK_OBJECT_HANDLE *objects, CK_ULONG count) {
    CK_ULONG kept = 0;
    for (CK_ULONG each = 0; each < count; each++)
        if (!settings.public_keys_hidden || !is_public_key(call->real, objects[each]))
            objects[kept++] = shown(call, objects[each]);
    return kept;
}

CK_RV C_FindObjectsInit(CK_SESSION_HANDLE session, CK_ATTRIBUTE *template, CK_ULONG count) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_FindObjectsInit, session);
    if (rv == CKR_OK) rv = softhsm->C_FindObjectsInit(call.real, template, count);
    return leave(&call, rv);
}

CK_RV C_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG room, CK_ULONG *count) {
    struct call call = { 0 };
    CK_ULONG found = 1, kept = 0;
    CK_RV rv = enter_session(&call, F_C_FindObjects, session);
    // Fewer than there is room for is the sign that there are no more.
    while (rv == CKR_OK && found > 0 && kept < room) {
        rv = softhsm->C_FindObjects(call.real, objects + kept, room - kept, &found);
        if (rv == CKR_OK) kept += keep(&call, objects + kept, found);
    }
    if (rv == CKR_OK) *count = kept;
    return leave(&call, rv);
}

CK_RV C_FindObjectsFinal(CK_SESSION_HANDLE session) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_FindObjectsFinal, session);
    if (rv == CKR_OK) rv = softhsm->C_FindObjectsFinal(call.real);
    return leave(&call, rv);
}

// ---- Attributes ---------------------------------------------------------------------------------------------------

static CK_RV answer(CK_ATTRIBUTE *attribute, const void *value, CK_ULONG length) {
    CK_ULONG room = attribute->ulValueLen;
    attribute->ulValueLen = length;
    if (attribute->pValue == NULL) return CKR_OK;
    if (room < length) {
        attribute->ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return CKR_BUFFER_TOO_SMALL;
    }
    memcpy(attribute->pValue, value, length);
    return CKR_OK;
}

// The content of an OCTET STRING: of one of the lengths that the points of curves have.
static CK_RV raw_point(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attribute) {
    CK_BYTE der[512];
    CK_ATTRIBUTE whole = { CKA_EC_POINT, der, sizeof der };
    CK_RV rv = softhsm->C_GetAttributeValue(session, object, &whole, 1);
    attribute->ulValueLen = rv == CKR_OK ? attribute->ulValueLen : CK_UNAVAILABLE_INFORMATION;
    if (rv != CKR_OK) return rv;
    CK_ULONG header = whole.ulValueLen > 2 && der[1] == 0x81 ? 3 : 2;
    return answer(attribute, der + header, whole.ulValueLen - header);
}

static CK_RV always_authenticate(CK_ATTRIBUTE *attribute) {
    static const CK_BBOOL yes = CK_TRUE;
    if (settings.always_authenticate == ALL_KEYS) return answer(attribute, &yes, sizeof yes);
    attribute->ulValueLen = CK_UNAVAILABLE_INFORMATION;
    return CKR_ATTRIBUTE_TYPE_INVALID;
}

static CK_RV get_attribute(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *attribute) {
    if (attribute->type == CKA_EC_POINT && settings.raw_points) return raw_point(session, object, attribute);
    if (attribute->type == CKA_ALWAYS_AUTHENTICATE && settings.always_authenticate != AS_IT_IS)
        return always_authenticate(attribute);
    return softhsm->C_GetAttributeValue(session, object, attribute, 1);
}

// One at a time: what goes wrong with one is told, and the others are answered all the same.
static CK_RV get_attributes(struct call *call, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template, CK_ULONG count) {
    CK_RV worst = real_object(call, object, &object);
    if (worst != CKR_OK) return worst;
    for (CK_ULONG each = 0; each < count; each++) {
        CK_RV rv = get_attribute(call->real, object, &template[each]);
        if (rv == CKR_OBJECT_HANDLE_INVALID) return rv;
        if (rv != CKR_OK) worst = rv;
    }
    return worst;
}

CK_RV C_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template, CK_ULONG count) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_GetAttributeValue, session);
    if (rv == CKR_OK) rv = get_attributes(&call, object, template, count);
    return leave(&call, rv);
}

CK_RV C_SetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template, CK_ULONG count) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_SetAttributeValue, session);
    if (rv == CKR_OK) rv = real_object(&call, object, &object);
    if (rv == CKR_OK) rv = softhsm->C_SetAttributeValue(call.real, object, template, count);
    return leave(&call, rv);
}

CK_RV C_GetObjectSize(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ULONG *size) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_GetObjectSize, session);
    if (rv == CKR_OK) rv = real_object(&call, object, &object);
    if (rv == CKR_OK) rv = softhsm->C_GetObjectSize(call.real, object, size);
    return leave(&call, rv);
}

// ---- What comes and goes ------------------------------------------------------------------------------------------

CK_RV C_CreateObject(CK_SESSION_HANDLE session, CK_ATTRIBUTE *template, CK_ULONG count, CK_OBJECT_HANDLE *object) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_CreateObject, session);
    if (rv == CKR_OK) rv = softhsm->C_CreateObject(call.real, template, count, object);
    if (rv == CKR_OK) *object = shown(&call, *object);
    return leave(&call, rv);
}

CK_RV C_CopyObject(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template, CK_ULONG count,
                   CK_OBJECT_HANDLE *copy) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_CopyObject, session);
    if (rv == CKR_OK) rv = real_object(&call, object, &object);
    if (rv == CKR_OK) rv = softhsm->C_CopyObject(call.real, object, template, count, copy);
    if (rv == CKR_OK) *copy = shown(&call, *copy);
    return leave(&call, rv);
}

CK_RV C_DestroyObject(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_DestroyObject, session);
    if (rv == CKR_OK) rv = real_object(&call, object, &object);
    if (rv == CKR_OK) rv = softhsm->C_DestroyObject(call.real, object);
    return leave(&call, rv);
}

CK_RV C_GenerateKey(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *template, CK_ULONG count,
                    CK_OBJECT_HANDLE *key) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_GenerateKey, session);
    if (rv == CKR_OK) rv = softhsm->C_GenerateKey(call.real, mechanism, template, count, key);
    if (rv == CKR_OK) *key = shown(&call, *key);
    return leave(&call, rv);
}

CK_RV C_GenerateKeyPair(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public_template,
                        CK_ULONG public_count, CK_ATTRIBUTE *private_template, CK_ULONG private_count,
                        CK_OBJECT_HANDLE *public_key, CK_OBJECT_HANDLE *private_key) {
    struct call call = { 0 };
    CK_RV rv = enter_session(&call, F_C_GenerateKeyPair, session);
    if (rv == CKR_OK)
        rv = softhsm->C_GenerateKeyPair(call.real, mechanism, public_template, public_count, private_template,
                                        private_count, public_key, private_key);
    if (rv == CKR_OK) {
        *public_key = shown(&call, *public_key);
        *private_key = shown(&call, *private_key);
    }
    return leave(&call, rv);
}
