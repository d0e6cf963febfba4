//! Signing and decrypting in two calls of the module: C_SignInit and C_Sign, with nothing or one login between.
//!
//! cryptoki 0.12 makes three: it asks C_Sign for the length first, which over a network costs as much as a signature.
//! And a key with CKA_ALWAYS_AUTHENTICATE wants a login between the two (PKCS#11 v3.1 section 5.6.8), which leaves no
//! room for that question. Only these four functions are called here, with sessions and handles that cryptoki holds.

use std::path::Path;

use cryptoki::{
    context::Function,
    error::{Error as Failure, Result, Rv, RvError},
    mechanism::Mechanism,
    object::ObjectHandle,
    session::Session,
};
use cryptoki_sys::{
    CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKR_OK,
    Pkcs11,
};

/// A module's functions for signing and decrypting.
#[derive(Clone, Copy)]
pub(crate) struct Calls {
    signing: Pair,
    decrypting: Pair,
}

/// What begins an operation, and what carries it out in one part.
#[derive(Clone, Copy)]
struct Pair {
    init: Init,
    single: Single,
    names: (Function, Function),
}

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Single =
    unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG) -> CK_RV;

impl Calls {
    /// The functions of a library that cryptoki has loaded, and that stays loaded to the end.
    ///
    /// # Errors
    ///
    /// Where it has none.
    pub(crate) fn of(library: &Path) -> Result<Self> {
        // SAFETY: the library is in the process already, so nothing of it is run by this.
        let library = unsafe { Pkcs11::new(library) }.map_err(Failure::LibraryLoading)?;
        let library: &'static Pkcs11 = Box::leak(Box::new(library)); // its functions are used to the end
        if library.C_GetFunctionList.is_err() {
            return Err(Failure::MissingSymbol("C_GetFunctionList"));
        }
        let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
        // SAFETY: the function is there, and writes a pointer to where it is told.
        let answer = unsafe { library.C_GetFunctionList(&raw mut list) };
        Rv::from(answer).into_result(Function::GetFunctionList)?;
        if list.is_null() {
            return Err(Failure::NullFunctionPointer);
        }
        // SAFETY: PKCS#11 v3.1 section 5.4.4: the list is the library's own and lasts as long as that does. On some
        // platforms it may be unaligned, so it is copied.
        let list = unsafe { list.read_unaligned() };
        let there = |function: Option<Init>| function.ok_or(Failure::NullFunctionPointer);
        let single = |function: Option<Single>| function.ok_or(Failure::NullFunctionPointer);
        Ok(Self {
            signing: Pair {
                init: there(list.C_SignInit)?,
                single: single(list.C_Sign)?,
                names: (Function::SignInit, Function::Sign),
            },
            decrypting: Pair {
                init: there(list.C_DecryptInit)?,
                single: single(list.C_Decrypt)?,
                names: (Function::DecryptInit, Function::Decrypt),
            },
        })
    }

    /// Signs `data`; answers how much of `out` the signature takes. `between` is done once the operation has begun.
    ///
    /// # Errors
    ///
    /// Those of the module, and of `between`.
    pub(crate) fn sign(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
        out: &mut [u8],
        between: impl FnOnce() -> Result<()>,
    ) -> Result<usize> {
        self.signing.perform(session, mechanism, key, data, out, between)
    }

    /// Decrypts `data` likewise.
    ///
    /// # Errors
    ///
    /// Those of the module, and of `between`.
    pub(crate) fn decrypt(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
        out: &mut [u8],
        between: impl FnOnce() -> Result<()>,
    ) -> Result<usize> {
        self.decrypting.perform(session, mechanism, key, data, out, between)
    }
}

impl Pair {
    fn perform(
        &self,
        session: &Session,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        data: &[u8],
        out: &mut [u8],
        between: impl FnOnce() -> Result<()>,
    ) -> Result<usize> {
        let mut raw = CK_MECHANISM::from(mechanism);
        // SAFETY: `raw` and what it points to in `mechanism` live through the call, which is all that the function may
        // use them for (PKCS#11 v3.1 section 5.1.2); the session is open as long as `session` is.
        let begun = unsafe { (self.init)(session.handle(), &raw mut raw, key.handle()) };
        Rv::from(begun).into_result(self.names.0)?;
        between()?;
        let mut len = CK_ULONG::try_from(out.len())?;
        let input = data.as_ptr().cast_mut();
        // SAFETY: the function reads `data.len()` bytes and writes no more than `len`, the room in `out`; it takes its
        // input by a pointer that isn't const, and doesn't write there (PKCS#11 v3.1 section 5.13.2).
        let done = unsafe {
            (self.single)(
                session.handle(),
                input,
                CK_ULONG::try_from(data.len())?,
                out.as_mut_ptr(),
                &raw mut len,
            )
        };
        if done != CKR_OK {
            Rv::from(done).into_result(self.names.1)?;
        }
        usize::try_from(len)
            .ok()
            .filter(|len| *len <= out.len())
            .ok_or(Failure::Pkcs11(RvError::BufferTooSmall, self.names.1))
    }
}
