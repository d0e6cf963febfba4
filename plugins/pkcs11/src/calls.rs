//! Signing and decrypting in two calls of the module: C_SignInit and C_Sign, with nothing or one login between.
//!
//! cryptoki 0.12 makes three: it asks C_Sign for the length first, which over a network costs as much as a signature.
//! And a key with CKA_ALWAYS_AUTHENTICATE wants a login between the two (PKCS#11 v3.1 section 5.6.8), which leaves no
//! room for that question. These four functions are called here with sessions and handles that cryptoki holds; and
//! C_GetTokenInfo, since to cryptoki a token whose clock it can't read is none.

use std::path::Path;

use cryptoki::{
    context::{Function, Pkcs11 as Library},
    error::{Error as Failure, Result, Rv, RvError},
    mechanism::Mechanism,
    object::ObjectHandle,
    session::Session,
    slot::{Slot, TokenInfo},
};
use cryptoki_sys::{
    CK_BYTE, CK_FUNCTION_LIST, CK_MECHANISM, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID,
    CK_TOKEN_INFO, CK_ULONG, CKF_CLOCK_ON_TOKEN, CKR_OK, Pkcs11,
};
use zeroize::Zeroizing;

/// How a module signs and decrypts, and tells of its tokens.
#[derive(Clone, Copy)]
pub(crate) enum Calls {
    /// By its functions, signing and decrypting, in two calls.
    Two(Pair, Pair, Tell),
    /// By cryptoki, in three: a library that makes a new list of functions for whoever asks (those of p11-kit) has a
    /// state of its own behind each, and only cryptoki's is initialised.
    Three,
}

/// What is done with a key.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    Sign,
    Decrypt,
}

/// One operation: how, and on what.
pub(crate) struct Work<'a, 'm> {
    pub(crate) operation: Operation,
    pub(crate) mechanism: &'a Mechanism<'m>,
    pub(crate) input: &'a [u8],
}

/// What begins an operation, and what carries it out in one part.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    init: Init,
    single: Single,
    names: (Function, Function),
}

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Single =
    unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_BYTE, CK_ULONG, *mut CK_BYTE, *mut CK_ULONG) -> CK_RV;

type Tell = unsafe extern "C" fn(CK_SLOT_ID, *mut CK_TOKEN_INFO) -> CK_RV;

impl Calls {
    /// The functions of a library that cryptoki has loaded, and that stays loaded to the end.
    ///
    /// # Errors
    ///
    /// Where its list of functions can't be had, or lacks one of these.
    pub(crate) fn of(library: &Path) -> Result<Self> {
        // SAFETY: the library is in the process already, so nothing of it is run by this.
        let library = unsafe { Pkcs11::new(library) }.map_err(Failure::LibraryLoading)?;
        let library: &'static Pkcs11 = Box::leak(Box::new(library)); // its functions are used to the end
        if library.C_GetFunctionList.is_err() {
            return Ok(Self::Three); // cryptoki has found another way in
        }
        let (list, again) = (list_of(library)?, list_of(library)?);
        if list != again {
            return Ok(Self::Three);
        }
        if list.is_null() {
            return Err(Failure::NullFunctionPointer);
        }
        // SAFETY: PKCS#11 v3.1 section 5.4.4: the list is the library's own and lasts as long as that does. On some
        // platforms it may be unaligned, so it is copied.
        let list = unsafe { list.read_unaligned() };
        let there = |function: Option<Init>| function.ok_or(Failure::NullFunctionPointer);
        let single = |function: Option<Single>| function.ok_or(Failure::NullFunctionPointer);
        let names = (Function::SignInit, Function::Sign);
        let signing = Pair { init: there(list.C_SignInit)?, single: single(list.C_Sign)?, names };
        let names = (Function::DecryptInit, Function::Decrypt);
        let decrypting = Pair { init: there(list.C_DecryptInit)?, single: single(list.C_Decrypt)?, names };
        let telling = list.C_GetTokenInfo.ok_or(Failure::NullFunctionPointer)?;
        Ok(Self::Two(signing, decrypting, telling))
    }

    /// Whether something can be done between the beginning of an operation and its end.
    pub(crate) fn can_log_in_between(&self) -> bool {
        matches!(self, Self::Two(..))
    }

    /// What a token says of itself, the time aside: opencryptoki's tell it in a form of their own, `12:34:56`.
    ///
    /// # Errors
    ///
    /// Those of the module.
    pub(crate) fn token_info(&self, library: &Library, slot: Slot) -> Result<TokenInfo> {
        let &Self::Two(_, _, tell) = self else { return library.get_token_info(slot) };
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: the function writes one CK_TOKEN_INFO to where it is told (PKCS#11 v3.1 section 5.5.3).
        let answer = unsafe { tell(slot.into(), &raw mut info) };
        Rv::from(answer).into_result(Function::GetTokenInfo)?;
        info.flags &= !CKF_CLOCK_ON_TOKEN;
        info.try_into()
    }

    /// Does the work with a key; answers how much of `out` the result takes. `between` is done once the operation has
    /// begun.
    ///
    /// # Errors
    ///
    /// Those of the module, and of `between`.
    pub(crate) fn perform(
        &self,
        session: &Session,
        key: ObjectHandle,
        work: &Work<'_, '_>,
        out: &mut [u8],
        between: impl FnOnce() -> Result<()>,
    ) -> Result<usize> {
        let &Work { operation, mechanism, input } = work;
        match (self, operation) {
            (Self::Two(pair, ..), Operation::Sign) | (Self::Two(_, pair, _), Operation::Decrypt) => {
                pair.perform(session, key, work, out, between)
            }
            (Self::Three, Operation::Sign) => {
                fill(out, &session.sign(mechanism, key, input)?, Function::Sign)
            }
            (Self::Three, Operation::Decrypt) => {
                let plain = Zeroizing::new(session.decrypt(mechanism, key, input)?);
                fill(out, &plain, Function::Decrypt)
            }
        }
    }
}

/// The list of functions that a library hands out.
fn list_of(library: &Pkcs11) -> Result<*mut CK_FUNCTION_LIST> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the caller has seen that the function is there; it writes a pointer to where it is told.
    let answer = unsafe { library.C_GetFunctionList(&raw mut list) };
    Rv::from(answer).into_result(Function::GetFunctionList)?;
    Ok(list)
}

fn fill(out: &mut [u8], answer: &[u8], function: Function) -> Result<usize> {
    let room = out.get_mut(..answer.len()).ok_or(Failure::Pkcs11(RvError::BufferTooSmall, function))?;
    room.copy_from_slice(answer);
    Ok(answer.len())
}

impl Pair {
    fn perform(
        &self,
        session: &Session,
        key: ObjectHandle,
        &Work { mechanism, input, .. }: &Work<'_, '_>,
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
        // SAFETY: the function reads `input.len()` bytes and writes no more than `len`, the room in `out`; it takes its
        // input by a pointer that isn't const, and doesn't write there (PKCS#11 v3.1 section 5.13.2).
        let done = unsafe {
            (self.single)(
                session.handle(),
                input.as_ptr().cast_mut(),
                CK_ULONG::try_from(input.len())?,
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
