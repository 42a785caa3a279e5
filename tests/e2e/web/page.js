// The page of an app that listens to its jobs with the Firebase web SDK; tests/e2e/test_firestore_browser.py drives it.
// Whatever a listener hears goes to `told(listener, news)`, which the test provides.
import { initializeApp } from "firebase/app";
import {
  collection, connectFirestoreEmulator, doc, getFirestore, limit, onSnapshot, orderBy, query, where,
} from "firebase/firestore";

let jobs;

// A real app gives the token to `signInWithCustomToken`. Beside this emulator there is no Firebase Auth, so the page
// says itself who it would then be: the uid and the claims that the token names.
window.signIn = async (apiUrl, host, port) => {
  const access = await (await fetch(`${apiUrl}/v1/firestore-token`, { method: "POST" })).json();
  const { uid, claims } = read(access.token);
  const firestore = getFirestore(initializeApp({ projectId: access.project_id }), access.database);
  connectFirestoreEmulator(firestore, host, port, { mockUserToken: { sub: uid, ...claims } });
  jobs = collection(firestore, access.collection);
  return access.owner;
};

window.watchJob = (id) => listen(id, doc(jobs, id), view);

window.watchOwner = (owner) => {
  const own = query(jobs, where("owner", "==", owner), orderBy("created_at", "desc"), limit(20));
  listen(owner, own, (snapshot) => snapshot.docs.map(view));
};

window.watchEverything = () => listen("everything", jobs, (snapshot) => snapshot.docs.map(view));

const listen = (listener, source, look) => {
  onSnapshot(
    source,
    (snapshot) => window.told(listener, { heard: look(snapshot), at: performance.timeOrigin + performance.now() }),
    (error) => window.told(listener, { refused: error.code }),
  );
};

const view = (snapshot) => {
  const { status, done, revision, owner } = snapshot.data();
  return { id: snapshot.id, status, done, revision, owner };
};

const read = (token) => {
  const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(payload), (char) => char.charCodeAt(0))));
};
