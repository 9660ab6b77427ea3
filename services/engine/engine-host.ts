/** Where every engine that Tandem starts serves HTTP: an engine has no access control, so only its wrapper may reach it. */
export const ENGINE_HOST = "127.0.0.1";
